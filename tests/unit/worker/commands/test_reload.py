"""After a migration the command waits, for a limited time, until REST serves the new schema, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_worker.commands.reload import wait_for_reload, wait_until_served
from lora_worker.database.functions import WORKER_FUNCTIONS
from lora_worker.database.rest import Rest
from lora_worker.errors import SchemaCacheError, ServiceRefusedError

UNKNOWN = httpx.Response(404, json={"code": "PGRST202", "message": "Could not find the function"})
READ_ONLY = httpx.Response(405, json={"code": "25006", "message": "read-only"})
ROWS: httpx.Response = httpx.Response(200, json=[])


class Api:
    """REST that serves the functions after a while, and a clock that only waiting moves."""

    def __init__(self, *, served_at: float = 0.0, before: httpx.Response = UNKNOWN) -> None:
        self.now = 0.0
        self.served_at = served_at
        self.before = before
        self.messages: list[str] = []
        self.notified: list[float] = []
        self.asked: set[str] = set()

    def answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.removeprefix("/rest/v1/")
        if not name.startswith("rpc/"):
            return ROWS
        assert request.method == "GET", "it may have an effect"
        if self.now < self.served_at:
            return self.before
        self.asked.add(name.removeprefix("rpc/"))
        return READ_ONLY

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def wait(self, seconds: float = 600) -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.answer)) as http:
            await wait_for_reload(
                Rest("http://db", "sb_secret_x", http=http),
                seconds=seconds,
                notify=lambda: self.notified.append(self.now),
                say=self.messages.append,
                sleep=self.sleep,
                clock=lambda: self.now,
            )


async def test_served_schema_needs_no_wait_and_no_message() -> None:
    api = Api()
    await api.wait()
    assert (api.now, api.messages, api.notified) == (0.0, [], [])
    assert api.asked == {function.name for function in WORKER_FUNCTIONS}


async def test_wait_is_announced_once_and_the_notification_repeated() -> None:
    api = Api(served_at=500)
    await api.wait()
    assert 500 <= api.now < 503
    message, served = api.messages
    assert served == "REST reads the new schema"
    assert "waiting up to 600 s for REST to read the new schema" in message
    assert len(api.notified) == 24


async def test_wait_for_the_schema_has_a_limit() -> None:
    api = Api(served_at=5000)
    with pytest.raises(SchemaCacheError, match=r"applied, but after 600 s .* SUPABASE_URL is the project of"):
        await api.wait()
    assert api.now < 603


async def test_gateway_outage_during_the_wait_is_tolerated() -> None:
    api = Api(served_at=30, before=httpx.Response(503, json={"code": "PGRST002", "message": "no schema cache"}))
    await api.wait()
    assert api.now >= 30
    assert "PGRST002" in api.messages[0]


@pytest.mark.parametrize(
    "refusal",
    [{"message": "Invalid API key"}, {"code": "42501", "message": "permission denied for function settle_run"}],
)
async def test_error_that_waiting_cannot_fix_is_reported_at_once(refusal: dict[str, Any]) -> None:
    api = Api(served_at=5000, before=httpx.Response(401, json=refusal))
    with pytest.raises(ServiceRefusedError):
        await api.wait()
    assert api.now == 0


@pytest.mark.parametrize(
    "environment",
    [{}, {"SUPABASE_URL": "https://p.supabase.co"}, {"SUPABASE_URL": "no url", "SUPABASE_SECRET_KEY": "sb_secret_x"}],
)
def test_without_a_rest_address_migrate_explains_the_delay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    messages: list[str] = []
    wait_until_served("postgresql://nobody.invalid/db", seconds=600, say=messages.append)
    assert len(messages) == 1
    assert "SUPABASE_SERVICE_ROLE_KEY" in messages[0]
