"""The handler's side of an errand: a child process does what is heavy, and its progress is sent to RunPod.

Nothing here imports torch, and nothing that the child does can end the handler.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress

from lora_contract.child_processes import ending_of, finish
from lora_contract.errands import (
    ErrandAsked,
    ErrandResult,
    ExportRequest,
    PrefetchProgress,
    PrefetchRequest,
    ServingRequest,
)
from lora_trainer.errands.examination import as_unfit, examine
from lora_trainer.errands.lines import Line
from lora_trainer.errands.serving import change_served_adapters
from lora_trainer.errors import ChildCrashedError, StoppedError, TrainingError
from lora_trainer.run.child import ChildProcess
from lora_trainer.run.logs import describe, print_line, secrets_of_environment
from lora_trainer.run.runpod_progress import Send
from lora_trainer.run.serving import find_served_adapters
from lora_trainer.settings import Settings

log = logging.getLogger(__name__)

PREFETCH_CHILD = "lora_trainer.errands.prefetch"
"""The module that downloads."""
EXPORT_CHILD = "lora_trainer.errands.exporting"
"""The module that merges."""

_SEND_TIMEOUT_SECONDS = 30
_STOP_SECONDS = 5
"""How long a download may take to end after SIGTERM; then it is killed, which leaves the finished files as they are."""


async def carry_out(request: ErrandAsked, settings: Settings, send: Send, stop: asyncio.Event) -> ErrandResult:
    """Carry out an errand. Raises nothing but `CancelledError`: the result says what went wrong.

    Whoever notices that the machine is taken away sets `stop`.
    """
    work, stopped = asyncio.create_task(_do(request, settings, send)), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            stopping = StoppedError(
                "The machine was taken away.", "Ask for the same again: files that are finished are kept."
            )
            return ErrandResult(kind=request.kind, error=stopping.as_errand_error())
        return work.result()
    except TrainingError as error:
        return ErrandResult(kind=request.kind, error=error.as_errand_error())
    except Exception as error:
        log.error("%s", describe(error))
        unexpected = TrainingError(f"The errand failed unexpectedly ({type(error).__name__}).")
        return ErrandResult(kind=request.kind, error=unexpected.as_errand_error())
    finally:
        stopped.cancel()
        work.cancel()
        with suppress(Exception):  # it was told above
            await finish(work)


async def _do(request: ErrandAsked, settings: Settings, send: Send) -> ErrandResult:
    # A prefetch comes before the first training, and the endpoint that answers does not start without this folder.
    if served := find_served_adapters(settings):
        with suppress(OSError):  # of no matter to the errand itself
            await asyncio.to_thread(served.prepare)
    if isinstance(request, PrefetchRequest):
        return await _in_child(PREFETCH_CHILD, request, settings, send)
    if isinstance(request, ExportRequest):
        return _with_volume(await _in_child(EXPORT_CHILD, request, settings, send))
    if isinstance(request, ServingRequest):
        return await asyncio.to_thread(change_served_adapters, request, find_served_adapters(settings))
    return await _check(settings)


async def _check(settings: Settings) -> ErrandResult:
    checks = await examine(settings)
    unfit = as_unfit(checks)
    return ErrandResult(kind="fitness", checks=checks, error=unfit.as_errand_error() if unfit else None)


async def _in_child(
    module: str, request: PrefetchRequest | ExportRequest, settings: Settings, send: Send
) -> ErrandResult:
    sender, results = _Sender(send), []

    def take(text: bytes) -> None:
        line = Line.model_validate_json(text)
        if line.progress is not None:
            sender.update(line.progress)
        if line.result is not None:
            results.append(line.result)

    child = ChildProcess(
        module,
        grace_seconds=_STOP_SECONDS,
        on_message=take,
        on_line=print_line,
        secrets=(*secrets_of_environment(), *_urls_of(request)),
    )
    try:
        status = await child.run(request.model_dump_json())
    finally:
        await sender.close()
    if sender.has_sent:
        # An update that arrives after the result would replace it.
        await asyncio.sleep(settings.settle_seconds)
    if not results:
        raise ChildCrashedError(
            f"The errand's process ended with {ending_of(status)} without saying why.",
            "Ask for the same again: finished files are kept. The container's log has the details.",
        )
    return results[-1]


def _with_volume(result: ErrandResult) -> ErrandResult:
    """Add which volume it is, as RunPod tells each container (docs.runpod.io, environment variables); not the child."""
    if result.export is not None:
        result.export.volume_id = os.environ.get("RUNPOD_VOLUME_ID")
        result.export.data_center = os.environ.get("RUNPOD_DC_ID")
    return result


def _urls_of(request: PrefetchRequest | ExportRequest) -> list[str]:
    return [file.url for file in request.files] if isinstance(request, ExportRequest) else []


class _Sender:
    """Sends the latest progress, one update at a time. The child writes no more often than the settings allow."""

    def __init__(self, send: Send) -> None:
        self.has_sent = False
        self._send = send
        self._latest: PrefetchProgress | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def update(self, progress: PrefetchProgress) -> None:
        self._latest = progress
        self._changed.set()

    async def close(self) -> None:
        """Return when nothing is being sent any more. What has not been sent yet is dropped: the result follows."""
        self._latest = None
        self._changed.set()
        await finish(self._task)

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._latest is None:
                return
            self.has_sent = True
            try:
                async with asyncio.timeout(_SEND_TIMEOUT_SECONDS):
                    await self._send(self._latest.model_dump(mode="json"))
            except Exception as error:  # the download goes on without its progress being shown
                log.warning("progress could not be sent (%s)", type(error).__name__)
