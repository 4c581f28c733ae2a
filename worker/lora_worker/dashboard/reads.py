"""Reads of the database that all open pages share: each question is asked at most once a second."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, cast

import structlog

from lora_worker.errors import ServiceError
from lora_worker.observability.actions import Action

T = TypeVar("T")

log = structlog.get_logger(__name__)

FRESH_SECONDS = 1.0
PATIENCE_SECONDS = 8.0
"""How long a page waits for the database before it shows what was read last."""

_MAX_QUESTIONS = 200
"""Questions whose answers are kept. Each job and each page of the list is one; the least used ones go first."""


@dataclass(frozen=True)
class Reading(Generic[T]):
    """The newest answer to a question. With a `problem`, it is the last one that could be read, or None."""

    value: T | None = None
    read_at: datetime | None = None
    problem: str | None = None


@dataclass
class _Question:
    asked_at: float = float("-inf")
    reading: Reading[Any] = field(default_factory=Reading)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedReads:
    """The answers of the database by question, for all open pages together.

    However many pages ask, each question reaches the database once in `fresh_seconds`, and one call at a time. A fault
    is an answer, too: while the database is down, it is asked no more often.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._clock, self._now = clock, now
        self._patience_seconds = patience_seconds
        self._questions: OrderedDict[Hashable, _Question] = OrderedDict()
        self._changes = 0

    async def ask(
        self, question: Hashable, read: Callable[[], Awaitable[T]], fresh_seconds: float = FRESH_SECONDS
    ) -> Reading[T]:
        """Return the answer to a question, by `read` if the known answer is older than `fresh_seconds`."""
        asked = self._questions.setdefault(question, _Question())
        self._questions.move_to_end(question)
        while len(self._questions) > _MAX_QUESTIONS:
            self._questions.popitem(last=False)
        async with asked.turn:
            if self._clock() - asked.asked_at >= fresh_seconds:
                changes = self._changes
                asked.reading = await self._read(asked.reading, read)
                # An answer from before a change must not be shown after it.
                asked.asked_at = self._clock() if changes == self._changes else float("-inf")
        return cast("Reading[T]", asked.reading)

    def forget(self) -> None:
        """Ask everything again: something was changed, and the next page has to show it."""
        self._changes += 1
        for question in self._questions.values():
            question.asked_at = float("-inf")

    async def _read(self, last: Reading[T], read: Callable[[], Awaitable[T]]) -> Reading[T]:
        try:
            async with asyncio.timeout(self._patience_seconds):
                return Reading(await read(), self._now())
        except ServiceError as error:
            problem = str(error)
        except TimeoutError:
            problem = f"the database has not answered within {self._patience_seconds:.0f} s"
        if last.problem != problem:
            log.warning("the dashboard can't read the database", action=Action.DASHBOARD_UNREAD, problem=problem)
        return Reading(last.value, last.read_at, problem)
