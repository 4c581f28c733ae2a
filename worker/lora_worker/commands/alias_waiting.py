"""Waits until the endpoint answers with the adapter that an alias leads to, and says where it stands meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID

from lora_worker.database.version_rows import AliasRow
from lora_worker.errors import PromotionRefusedError, ServiceUnavailableError
from lora_worker.versions.promotion import LIVE, standing

_POLL_SECONDS = 2.0


class Asks(Protocol):
    """What the waiting needs of `DatabaseCalls`."""

    def list_training_aliases(self, name: str | None = None, user_id: UUID | None = None) -> Awaitable[list[AliasRow]]:
        """List the alias of this name."""


async def wait_until_served(
    queue: Asks,
    alias: AliasRow,
    *,
    seconds: float,
    say: Callable[[str], None],
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> AliasRow:
    """Poll an alias until its move is served, or the time is over; returns how it stands then.

    Args:
        queue: the database.
        alias: the alias after the move that is waited for.
        seconds: how long to wait at most. The move stays, and a worker goes on with it.
        say: called with a line whenever something has changed.
        pause: waits for some seconds.
        clock: returns seconds.

    Raises:
        PromotionRefusedError: somebody has moved the alias meanwhile, or it is gone.
        ServiceError: the database refused the call.
    """
    ends_at, told, now = clock() + seconds, "", alias
    while True:
        stands = standing(now)
        if stands != told:
            say(f"{alias['name']}{LIVE} {stands}")
            told = stands
        if now["served"] or now["deleted"] or clock() >= ends_at:
            return now
        await pause(_POLL_SECONDS)
        try:
            found = await queue.list_training_aliases(alias["name"])
        except ServiceUnavailableError:
            continue
        if not found or found[0]["number"] != alias["number"]:
            by = f" by {found[0]['moved_by']}" if found else ""
            raise PromotionRefusedError(f"{alias['name']}{LIVE} was {'moved' if found else 'removed'}{by} meanwhile")
        now = found[0]
