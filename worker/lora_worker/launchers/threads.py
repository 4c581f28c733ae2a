"""Calls of a library that blocks, each in a thread of its own that the process does not wait for at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread(call: Callable[[], Result], slots: asyncio.Semaphore) -> Result:
    """Return what `call` returns, or raise what it raises. `slots` bounds how many run side by side.

    The threads of `asyncio.to_thread` are waited for when the process ends: a call to a cloud that does not answer
    would hold up a worker that was told to stop. A caller who is cancelled leaves the call to itself; it keeps its slot
    until it ends.
    """
    await slots.acquire()
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        slots.release()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    Thread(target=work, name="cloud call", daemon=True).start()
    return await future
