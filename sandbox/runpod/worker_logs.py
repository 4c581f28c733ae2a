"""What the workers print, in memory: the last lines of each, until some minutes after the worker has ended.

RunPod drops the lines of a container about two minutes after it is gone. Times are seconds of the injected clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Literal

KEPT_SECONDS = 120.0
_MOST_LINES = 5000
_MOST_CHARACTERS = 4096
_MOST_LOGS = 50
_READ_BYTES = 1024 * 1024

Source = Literal["container", "system"]


@dataclass(frozen=True)
class Line:
    """A line of a worker's log. `number` grows with every line of this worker, also over lines that were dropped."""

    number: int
    at: float
    source: Source
    text: str


@dataclass
class WorkerLog:
    """The last lines of a worker. `is_kept` ends when they are dropped."""

    file: BufferedReader
    clock: Callable[[], float]
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    ended_at: float | None = None
    is_kept: bool = True
    _count: int = 0
    _rest: bytes = b""

    def say(self, text: str, source: Source = "system") -> None:
        """Add a line."""
        self._count += 1
        self.lines.append(Line(self._count, self.clock(), source, text[:_MOST_CHARACTERS]))

    def collect(self) -> None:
        """Read what the worker has printed since the last time."""
        *whole, self._rest = (self._rest + self.file.read(_READ_BYTES)).split(b"\n")
        for line in whole:
            self._print(line)
        if len(self._rest) > _MOST_CHARACTERS:
            self._print(self._rest)
            self._rest = b""

    def end(self, text: str) -> None:
        """Take the worker's last words, and note its end. A second call does nothing."""
        if self.ended_at is not None:
            return
        while self.file.peek(1):
            self.collect()
        if self._rest:
            self._print(self._rest)
        self.file.close()
        self.say(text)
        self.ended_at = self.clock()

    def _print(self, line: bytes) -> None:
        self.say(line.decode(errors="replace").rstrip("\r"), "container")


class WorkerLogs:
    """The logs of an endpoint's workers, by worker. Only the event loop may use them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logs: dict[str, WorkerLog] = {}

    def begin(self, worker_id: str, file: Path) -> WorkerLog:
        """Follow the file to which a new worker prints."""
        file.touch()
        log = self._logs[worker_id] = WorkerLog(file.open("rb"), self._clock)
        return log

    def get(self, worker_id: str) -> WorkerLog | None:
        """Return a worker's log; None if there is none, or it is no longer kept."""
        return self._logs.get(worker_id)

    def keep(self) -> None:
        """Collect what the workers have printed, and drop the logs that are too old or too many."""
        ended = []
        for worker_id, log in self._logs.items():
            if log.ended_at is None:
                log.collect()
            else:
                ended.append((log.ended_at, worker_id))
        surplus = len(ended) - _MOST_LOGS
        for number, (ended_at, worker_id) in enumerate(sorted(ended)):
            if number < surplus or self._clock() >= ended_at + KEPT_SECONDS:
                self._logs.pop(worker_id).is_kept = False

    def close(self) -> None:
        """Drop everything."""
        for log in self._logs.values():
            log.end("The worker was removed.")
            log.is_kept = False
        self._logs.clear()
