"""The main process of a machine that was started for one run: `python -u -m lora_trainer.machine`.

Pods, training jobs and tasks of a cloud bring no request and carry no result. The request and the launch's id come in
environment variables (`lora_contract.machine_request`), progress goes to the database with the heartbeat, and so does
the result (`finish_run`). The exit status is 0 for a run that is complete or another execution's, and 1 for one that
failed. On SIGTERM, with which a cloud takes its machine back, the training saves a checkpoint. Its volume is the folder
that outlives the machine, if the cloud has one: the launcher names it in `LORA_TRAINER_VOLUME`. Where an ended
container is started again, the process asks for its machine's end and waits for it (`run/machine_end.py`); only a
failure that it could not report ends it with 1 at once, so that the next start checks in again. Where the cloud starts
the container again on another machine, an interrupted process says nothing, and waits to be killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_contract.error_codes import ErrorCode
from lora_contract.machine_request import find_launch_id, forget_request, unpack_request
from lora_contract.protocol import Channel, Result
from lora_trainer.errors import TrainingError
from lora_trainer.handler import carry_out_job
from lora_trainer.run.channel import ChannelClient
from lora_trainer.run.logs import configure_logging
from lora_trainer.run.machine_end import await_end, await_kill
from lora_trainer.run.runpod_progress import Send
from lora_trainer.run.sizes import fit_report
from lora_trainer.settings import Settings, load_settings, unread_settings

log = logging.getLogger(__name__)

FAILURE_FILE = Path("/opt/ml/output/failure")
"""SageMaker shows the beginning of this file as the reason of a failed training job."""
_FAILURE_CHARACTERS = 1000


def main() -> int:
    """Carry out the request of the environment; returns the exit status."""
    configure_logging()
    try:
        request, launch_id = unpack_request(os.environ), find_launch_id(os.environ)
    except ValueError as error:
        return _end(str(error))
    finally:
        # Before any process is started: each would inherit the run's token.
        forget_request(os.environ)
    for sentence in unread_settings():
        log.warning("%s", sentence)
    # Each training answers SIGTERM itself while it runs. Before and after it the signal must not end this process,
    # which has a result to report; the cloud kills it soon enough.
    signal.signal(signal.SIGTERM, _note_signal)
    ending = asyncio.run(_carry_out(request, launch_id))
    if ending.goes_on:
        await_kill()
    elif ending.is_told:
        await_end(os.environ)
    # A machine that waits without a word would be paid for until its worker gives it up: started again, it has another
    # try at its check-in, and the launcher counts the starts.
    return ending.status


class _Ending(NamedTuple):
    """How the work of this process has ended."""

    status: int
    is_told: bool = False
    """Whether nothing is left to be told of the run."""
    goes_on: bool = False
    """Whether the cloud took the machine away, and starts the container again: nobody is to hear of an end."""


def _note_signal(_number: int, _frame: object) -> None:
    log.info("the machine is taken away")


async def _carry_out(request: dict[str, Any], launch_id: str) -> _Ending:
    execution_id = str(uuid.uuid4())
    output = await carry_out_job({"id": launch_id, "input": request}, _sending_nothing(), execution_id=execution_id)
    settings = _settings()
    try:
        result = Result.model_validate(output)
    except ValidationError:
        result = None
    if settings.cloud_restarts and result and result.error and result.error.code is ErrorCode.INTERRUPTED:
        # Reported, it would end the run, and the worker would launch it again beside the cloud's own restart.
        return _Ending(1, goes_on=True)
    is_told = await _report(result, request, launch_id, execution_id, settings)
    return _Ending(_end(output["error"]) if "error" in output else 0, is_told)


async def _report(
    result: Result | None, request: dict[str, Any], launch_id: str, execution_id: str, settings: Settings
) -> bool:
    """Tell the database how the run has ended; returns whether the worker can know it. Raises nothing."""
    try:
        channel = Channel.model_validate(request.get("channel"))
    except ValidationError:
        channel = None
    if channel is None or result is None:
        log.warning("no run to report to: the result stays here")
        return False
    if result.status == "superseded":
        return True
    try:
        async with ChannelClient(
            channel,
            external_job_id=launch_id,
            execution_id=execution_id,
            patience_seconds=settings.channel_patience_seconds,
        ) as client:
            stored = await client.finish(fit_report(result))
    except TrainingError as error:
        log.warning("the result could not be reported: %s", error)
        # The worker finds a published adapter by itself; started again, the machine would train it anew.
        return result.status == "completed"
    log.info("the result is reported" if stored else "nobody waits for the result any more")
    return True


def _settings() -> Settings:
    try:
        return load_settings()
    except TrainingError:
        # It is what the result says: the training ended with the same sentence.
        return Settings.model_construct()


@asynccontextmanager
async def _sending_nothing() -> AsyncIterator[Send]:
    async def send(payload: dict[str, Any]) -> None:
        """Progress goes with the heartbeat alone."""

    yield send


def _end(sentence: str) -> int:
    """Say why this machine failed, to whoever reads its log or asks its cloud; returns the exit status."""
    log.error("%s", sentence)
    if FAILURE_FILE.parent.is_dir():
        try:
            FAILURE_FILE.write_text(sentence[:_FAILURE_CHARACTERS], encoding="utf-8")
        except OSError as error:
            log.warning("the cloud could not be told why (%s)", type(error).__name__)
    return 1


if __name__ == "__main__":
    sys.exit(main())
