"""How the training process ends early: because it received SIGTERM, or because the handler's process has died."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


class StepInterruptedError(Exception):
    """A stop was requested in the middle of an optimizer step. Caught by whoever called the trainer's `train`."""


class StopSwitch:
    """Receives SIGTERM. From `training_begins` on, it only sets `requested`, which is read before each forward pass.

    Before that there is nothing to save, and the signal calls `end_now`. It must end the process and not return: an
    exception raised in a signal handler would be caught by whatever library happens to run.
    """

    def __init__(self, end_now: Callable[[], NoReturn]) -> None:
        self.requested = False
        self._end_now = end_now
        self._training = False
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def training_begins(self) -> None:
        """From now on a stop must leave a checkpoint, so the signal only sets `requested`."""
        self._training = True

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 signal's signature
        self.requested = True
        if not self._training:
            self._end_now()
