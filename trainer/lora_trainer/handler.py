"""The handler that RunPod calls with each job: `python -u -m lora_trainer.handler` is the container's main process.

As every RunPod worker it also takes `--test_input '{"input": {…}}'` and `--rp_serve_api`. Nothing here imports torch:
the training runs in a child process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import cache
from typing import Any

from pydantic import ValidationError

from lora_contract.errands import ERRAND_KINDS, ERRAND_REQUESTS, ErrandAsked, ErrandResult
from lora_contract.protocol import PROTOCOL_VERSION, Request, Result
from lora_contract.tracing import Traces, open_traces
from lora_contract.words import fault_words
from lora_trainer.errands.errand import carry_out
from lora_trainer.errands.examination import as_unfit, examine
from lora_trainer.errors import RequestInvalidError, TrainingError
from lora_trainer.run.execution import Execution
from lora_trainer.run.logs import configure_logging
from lora_trainer.run.runpod_progress import Send
from lora_trainer.run.stage_spans import FLUSH_SECONDS
from lora_trainer.settings import load_settings, unread_settings

log = logging.getLogger(__name__)


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Carry out one RunPod job. Returns a `protocol.Result` as JSON; RunPod fails the job if it has an error.

    An errand's job (`lora_contract.errands`) returns an `ErrandResult` instead.
    """
    return await carry_out_job(job, _sending_progress(job))


async def carry_out_job(
    job: dict[str, Any], sending: AbstractAsyncContextManager[Send], *, execution_id: str | None = None
) -> dict[str, Any]:
    """Carry out a training or an errand, whoever brought it. `sending` opens the way that its progress goes.

    A training is the execution of this id; of a new one where the caller has no use for it.
    """
    given = job.get("input")
    if isinstance(given, dict) and given.get("kind") is not None:
        return (await _run_errand(job, sending)).as_output()
    return (await _run_training(job, sending, execution_id)).as_output()


@cache
def _traces() -> Traces:
    """The traces of this container, as its own variables ask for them."""
    traces = open_traces("lora-trainer", instance=os.environ.get("RUNPOD_POD_ID"))
    if traces.problem:
        log.warning("%s", traces.problem)
    return traces


async def _run_training(
    job: dict[str, Any], sending: AbstractAsyncContextManager[Send], execution_id: str | None
) -> Result:
    try:
        request = parse_request(job.get("input"))
        async with sending as send:
            execution = Execution(
                request, job["id"], load_settings(), send, execution_id=execution_id, traces=_traces()
            )
            with _on_sigterm(execution.stop.set):
                result = await execution.run()
            await asyncio.to_thread(_traces().flush, seconds=FLUSH_SECONDS)
            return result
    except TrainingError as error:
        log.error("%s", error)
        given = job.get("input")
        run_id = given.get("run_id") if isinstance(given, dict) else None
        return Result(run_id=str(run_id), status="failed", error=error.as_protocol())


async def _run_errand(job: dict[str, Any], sending: AbstractAsyncContextManager[Send]) -> ErrandResult:
    try:
        request = parse_errand(job["input"])
        async with sending as send:
            stop = asyncio.Event()
            with _on_sigterm(stop.set):
                return await carry_out(request, load_settings(), send, stop)
    except TrainingError as error:
        log.error("%s", error)
        kind = next((known for known in ERRAND_KINDS if known == job["input"]["kind"]), "prefetch")
        return ErrandResult(kind=kind, error=error.as_errand_error())


def parse_request(given: Any) -> Request:
    """The job's input as a `protocol.Request`.

    Raises:
        RequestInvalidError: names the first key that is wrong, without its value, which may be secret.
    """
    if not isinstance(given, dict):
        raise RequestInvalidError("The job's input is not an object; send the worker's request.")
    with _naming_the_key(given):
        return Request.model_validate(given)


def parse_errand(given: dict[str, Any]) -> ErrandAsked:
    """The job's input as an errand's request.

    Raises:
        RequestInvalidError: names the first key that is wrong.
    """
    with _naming_the_key(given):
        return ERRAND_REQUESTS.validate_python(given)


@contextmanager
def _naming_the_key(given: dict[str, Any]) -> Iterator[None]:
    """Check the protocol's version, and while this context is open turn validation errors into sentences."""
    if (protocol := given.get("protocol", PROTOCOL_VERSION)) != PROTOCOL_VERSION:
        raise RequestInvalidError(
            f"The request speaks protocol {protocol!r:.40}, this trainer {PROTOCOL_VERSION}.",
            "Bring the worker and the trainer's image to the same release.",
        )
    try:
        yield
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if problem["type"] == "union_tag_invalid":
            # Its message holds the value.
            raise RequestInvalidError(f"The request's kind is none of {', '.join(ERRAND_KINDS)}.") from None
        # pydantic puts the kind of an errand before its key.
        place = ".".join(str(part) for part in problem["loc"] if part != given.get("kind")) or "input"
        said = fault_words(problem["type"], problem["msg"])
        raise RequestInvalidError(f"The request's {place} is wrong: {said}.") from None


@asynccontextmanager
async def _sending_progress(job: dict[str, Any]) -> AsyncIterator[Send]:
    async def post(payload: dict[str, Any]) -> None:
        # The SDK's own progress_update sends from threads, in any order. An update that arrives after the result
        # leaves the job IN_PROGRESS for ever.
        await rp_http.send_result(session, {"status": "IN_PROGRESS", "output": payload}, job)

    async def print_line(payload: dict[str, Any]) -> None:
        if "stage" in payload:
            log.info("%s %.0f %% step %s", payload["stage"], payload["progress"], payload["current_step"])
        else:
            log.info("%s %s of %s bytes", payload["model"], payload["done_bytes"], payload["total_bytes"])

    if "RUNPOD_WEBHOOK_POST_OUTPUT" not in os.environ:  # started with --test_input or --rp_serve_api
        yield print_line
        return
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules import rp_http

    async with AsyncClientSession() as session:
        yield post


@contextmanager
def _on_sigterm(stop: Callable[[], object]) -> Iterator[None]:
    """While this context is open, call `stop` on SIGTERM, and then the SDK's own signal handler.

    The SDK installs its signal handler when it starts, and does not tell a running job of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous = signal.getsignal(signal.SIGTERM)

    def on_signal(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(stop)
        if callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main() -> None:
    """Serve jobs until RunPod stops the container."""
    configure_logging()
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # its default level prints every output
    for sentence in unread_settings():
        # A warning only: the GPU is already paid for, so it trains with the defaults.
        log.warning("%s", sentence)
    # The SDK's own checks import torch into this process, where it would hold memory of the GPU as long as the
    # container lives. Ours look at the same things in a process of their own.
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    import runpod

    runpod.serverless.register_fitness_check(check_fitness)
    runpod.serverless.start({"handler": handler})


async def check_fitness() -> None:
    """Check the machine, unless the settings say otherwise. RunPod's SDK calls this before the first job.

    Raises:
        RuntimeError: it is unfit. The SDK then tells RunPod, and ends this container.
    """
    try:
        settings = load_settings()
    except TrainingError as error:
        log.error("%s", error)  # each job is refused with the same sentence
        return
    if settings.fitness_at_start and (unfit := as_unfit(await examine(settings))):
        raise RuntimeError(unfit.message)


if __name__ == "__main__":
    main()
