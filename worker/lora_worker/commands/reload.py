"""After a migration: wait until REST has read the schema again, which it keeps a copy of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from lora_worker.configuration.addresses import is_base_url, supabase_fault
from lora_worker.configuration.environment import ENV_FILE, ENV_FILE_ENCODING
from lora_worker.database.functions import WORKER_FUNCTIONS, Function
from lora_worker.database.migrations import ask_for_reload
from lora_worker.database.rest import SERVICE, Rest
from lora_worker.errors import SchemaCacheError, SchemaMissingError, ServiceUnavailableError

_POLL_SECONDS = 2.0
_NOTIFY_SECONDS = 20.0
_CALL_SECONDS = 15.0

_UNWATCHED = (
    "REST reads the new schema within seconds, through a pooler perhaps only after ten minutes; where SUPABASE_URL and "
    "SUPABASE_SERVICE_ROLE_KEY are set, migrate waits for that"
)


class RestSettings(BaseSettings):
    """What of the worker's settings is needed to ask REST; `migrate` runs without the others."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding=ENV_FILE_ENCODING, extra="ignore", hide_input_in_errors=True
    )

    url: str | None = Field(default=None, validation_alias="SUPABASE_URL")
    key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY")
    )


def see_it_served(database_url: str, *, seconds: float, say: Callable[[str], None]) -> None:
    """Wait for REST after a migration, where the environment or `.env` says where that is.

    Raises as `wait_for_reload` does.
    """
    settings = RestSettings()
    url, key = (settings.url or "").rstrip("/"), settings.key
    if key is None or not is_base_url(url) or supabase_fault(url):
        say(_UNWATCHED)
        return

    async def wait() -> None:
        async with httpx.AsyncClient(timeout=_CALL_SECONDS) as http:
            await wait_for_reload(
                Rest(url, key.get_secret_value(), http=http),
                seconds=seconds,
                notify=lambda: ask_for_reload(database_url),
                say=say,
                sleep=asyncio.sleep,
            )

    asyncio.run(wait())


async def wait_for_reload(
    rest: Rest,
    *,
    seconds: float,
    notify: Callable[[], None],
    say: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until REST knows every function that the worker calls, just after they were migrated.

    Its notification may get lost on its way, through a pooler above all: `notify` repeats it. `say` is told what is
    waited for, each time that changes.

    Raises:
        SchemaCacheError: it does not after so many seconds.
        ServiceRefusedError: the key or a right is wrong, which no waiting mends.
    """
    began = notified = clock()
    unknown: list[Function[Any]] = list(WORKER_FUNCTIONS)
    told = ""
    while problem := await _first_problem(rest, unknown):
        waited = clock() - began
        if waited >= seconds:
            raise SchemaCacheError(
                SERVICE,
                f"applied, but after {waited:.0f} s REST does not serve it ({problem}): see that SUPABASE_URL is the "
                "project of --database-url; the worker waits by itself, `lora-worker doctor` says when it is served",
            )
        if problem != told:
            say(f"waiting up to {seconds:.0f} s for REST to read the new schema ({problem})")
            told = problem
        if clock() - notified >= _NOTIFY_SECONDS:
            notify()
            notified = clock()
        await sleep(_POLL_SECONDS)


async def _first_problem(rest: Rest, unknown: list[Function[Any]]) -> str | None:
    """Why REST does not serve the first of these functions; those that it serves are taken from the list."""
    while unknown:
        try:
            await rest.try_out(unknown[0])
        except SchemaMissingError:
            return f"it does not know {unknown[0].name} yet"
        except ServiceUnavailableError as error:
            return str(error)
        unknown.pop(0)
    return None
