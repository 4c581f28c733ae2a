"""Sends progress to RunPod: in order, one update at a time, and none after the result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from lora_contract.crash_points import crash_point
from lora_contract.protocol import STAGES, Progress
from lora_trainer.run.sizes import fit_message

log = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends one progress update, as JSON-compatible values, to RunPod."""

_SEND_TIMEOUT_SECONDS = 30


def advance(before: Progress | None, after: Progress) -> Progress:
    """The newer progress `after`, raised to `before` where it is behind.

    A child that was restarted begins again by loading the model; the user shall not see the progress go back.
    """
    if before is None:
        return after
    stage = max(before.stage, after.stage, key=STAGES.index)
    return after.model_copy(
        update={
            "stage": stage,
            "progress": max(before.progress, after.progress),
            "current_step": max(before.current_step, after.current_step),
            "current_epoch": max(before.current_epoch, after.current_epoch),
            "total_steps": after.total_steps or before.total_steps,
            "points": after.points or before.points,
            "metrics": after.metrics or before.metrics,
            "gpu_type": after.gpu_type or before.gpu_type,
            "gpu_count": after.gpu_count or before.gpu_count,
        }
    )


class ProgressPoster:
    """Sends the latest progress, at most once in `interval_seconds`.

    An update that arrives while another is being sent replaces the one that waits. Nothing is lost by that, because
    each update holds all that the ones before it held. `close` waits `settle_seconds` after the last one.
    """

    def __init__(self, send: Send, *, interval_seconds: float, settle_seconds: float) -> None:
        self._send = send
        self._interval_seconds = interval_seconds
        self._settle_seconds = settle_seconds
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self.latest: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Take a newer progress, which is sent as soon as the interval allows."""
        self.latest = advance(self.latest, progress)
        self._changed.set()
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Return when nothing is being sent any more and the last update has had time to arrive."""
        if self._loop is None:
            return
        self._closing.set()
        self._changed.set()
        await self._loop
        await asyncio.sleep(self._settle_seconds)

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            if self._closing.is_set():
                return
            self._changed.clear()
            await self._post()
            try:
                async with asyncio.timeout(self._interval_seconds):
                    await self._closing.wait()
            except TimeoutError:
                continue

    async def _post(self) -> None:
        assert self.latest is not None
        crash_point("trainer.progress.before")
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_SECONDS):
                await self._send(fit_message(self.latest).model_dump(mode="json", exclude_none=True))
            crash_point("trainer.progress.after")
        except Exception as error:  # the training goes on without its progress being shown
            log.warning("progress could not be sent (%s)", type(error).__name__)
