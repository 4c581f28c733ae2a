"""Erases a user: stops the runs, then removes the files, then the rows. A repeated call goes on where one broke off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import groupby
from uuid import UUID

from lora_worker.database.erasure_rows import UserObject
from lora_worker.errors import ServiceRefusedError
from lora_worker.services import Services

_OBJECTS_AT_ONCE = 1000
_POLL_SECONDS = 3.0


@dataclass(slots=True)
class Erasure:
    """What was done, and why it is not finished; `reason` is None if it is."""

    user_id: UUID
    stopped_jobs: int = 0
    files: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    reason: str | None = None


async def erase_user(
    services: Services,
    user_id: UUID,
    *,
    wait_seconds: float,
    say: Callable[[str], None] = lambda _: None,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Erasure:
    """Erase everything of a user; waits `wait_seconds` at the most for GPUs to be stopped.

    Files go before the rows by which they are found. While a run has a GPU nothing is removed: only its rows tell which
    one must be stopped.

    Raises:
        ServiceError: Supabase did not answer, or refused; the next call goes on.
    """
    done = Erasure(user_id, stopped_jobs=await services.queue.stop_user_training(user_id))
    if busy := await _wait_for_gpus(services, user_id, wait_seconds, say, pause):
        done.reason = (
            f"{busy} runs are still being stopped, which a running worker does within a minute or two: "
            "then run this again"
        )
        return done
    done.files = await _remove_files(services, user_id)
    answer = await services.queue.erase_training_user(user_id)
    done.rows, done.reason = answer["rows"], answer["reason"]
    # A worker may have stored the log of a run meanwhile. One that stores it later finds the job gone, and removes it.
    done.files += await _remove_files(services, user_id)
    return done


async def _wait_for_gpus(
    services: Services,
    user_id: UUID,
    wait_seconds: float,
    say: Callable[[str], None],
    pause: Callable[[float], Awaitable[None]],
) -> int:
    """Return how many runs still have a GPU when the time is over."""
    ends_at = services.clock() + wait_seconds
    while busy := (await services.queue.training_user_state(user_id))["busy"]:
        if services.clock() >= ends_at:
            break
        say(f"waiting until {busy} runs are stopped")
        await pause(_POLL_SECONDS)
    return busy


async def _remove_files(services: Services, user_id: UUID) -> int:
    removed, before = 0, list[UserObject]()
    bucket = services.settings.artifacts_bucket
    while found := await services.queue.training_user_objects(user_id, bucket, _OBJECTS_AT_ONCE):
        if found == before:
            raise ServiceRefusedError(
                "Supabase Storage", f"Supabase Storage keeps {len(found)} files that it was asked to remove", status=400
            )
        for name, objects in groupby(found, key=lambda found_object: found_object["bucket"]):
            await services.storage.remove(name, [found_object["name"] for found_object in objects])
        removed, before = removed + len(found), found
    return removed
