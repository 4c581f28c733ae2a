"""Waits after a migration until the REST API (PostgREST) has reloaded its cached copy of the schema."""

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
from lora_worker.database.function import Function
from lora_worker.database.functions import WORKER_FUNCTIONS
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
    """The settings that are needed to call the REST API. `lora-worker migrate` does not require any others."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding=ENV_FILE_ENCODING, extra="ignore", hide_input_in_errors=True
    )

    url: str | None = Field(default=None, validation_alias="SUPABASE_URL")
    key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY")
    )


def wait_until_served(database_url: str, *, seconds: float, say: Callable[[str], None]) -> None:
    """Wait after a migration until the REST API knows the new functions, if its URL and key are set.

    Without them this only prints a note. Raises as `wait_for_reload` does.
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
    """Wait until the REST API knows every function that the worker calls.

    The notification that makes it reload its schema may get lost, above all in a connection pooler. So `notify` sends
    it again every 20 seconds. `say` gets a sentence for the operator each time the reason for waiting changes.

    Raises:
        SchemaCacheError: the API does not know the functions after `seconds`.
        ServiceRefusedError: the key or a right is wrong, so waiting would not help.
    """
    began = notified = clock()
    unknown: list[Function[Any]] = list(WORKER_FUNCTIONS)
    last_problem = ""
    while problem := await _first_problem(rest, unknown):
        waited = clock() - began
        if waited >= seconds:
            raise SchemaCacheError(
                SERVICE,
                f"applied, but after {waited:.0f} s REST does not serve it ({problem}): see that SUPABASE_URL is the "
                "project of --database-url; the worker waits by itself, `lora-worker doctor` says when it is served",
            )
        if problem != last_problem:
            say(f"waiting up to {seconds:.0f} s for REST to read the new schema ({problem})")
            last_problem = problem
        if clock() - notified >= _NOTIFY_SECONDS:
            notify()
            notified = clock()
        await sleep(_POLL_SECONDS)
    if last_problem:
        say("REST reads the new schema")


async def _first_problem(rest: Rest, unknown: list[Function[Any]]) -> str | None:
    """Explain why the first function of the list can't be called yet; functions that can be are removed from it."""
    while unknown:
        try:
            await rest.try_out(unknown[0])
        except SchemaMissingError:
            return f"it does not know {unknown[0].name} yet"
        except ServiceUnavailableError as error:
            return str(error)
        unknown.pop(0)
    return None
