"""How the training process ends early: asked to by SIGTERM, or because its handler is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


class StopSwitch:
    """Hears SIGTERM. While training it is a flag, looked at after each step; before, `end_now` is called.

    `end_now` must not return: an exception raised here would be caught by whatever library is at work.
    """

    def __init__(self, end_now: Callable[[], NoReturn]) -> None:
        self.requested = False
        self._end_now = end_now
        self._training = False
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def training_begins(self) -> None:
        """From now on there is something to save."""
        self._training = True

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 signal's signature
        self.requested = True
        if not self._training:
            self._end_now()


def end_with_the_handler() -> None:
    """Kill this process and its children when standard input ends: the handler that held it is dead.

    Otherwise an orphan would go on using the GPU while another execution trains the same run.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="handler-watch", daemon=True).start()
