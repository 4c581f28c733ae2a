"""A change of one variable keeps everything else of an endpoint, and is never mixed with somebody else's."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from lora_worker.deployment.releasing import ALIASES_AT, change_variables, release_again
from lora_worker.errors import DeploymentError
from tests.unit.worker.deployment.fake_account import Account
from tests.unit.worker.deployment.fake_api import Waits, client

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
FIELDS: dict[str, Any] = {
    "name": "answers -fb", "type": "QUEUE", "image": "i:1", "disk": 50, "env": {"A": "1"}, "networkVolumes": ["v1"],
    "workers": {"min": 0, "max": 3, "idleTimeout": 30}, "gpu": {"pools": ["AMPERE_80"], "count": 2},
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}, "timeout": 600_000, "flashboot": "FLASHBOOT",
}  # fmt: skip


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
def endpoint(account: Account) -> str:
    return account.add("serverless", **FIELDS)


async def test_an_alias_release_changes_one_variable_alone(account: Account, endpoint: str) -> None:
    bodies: list[Any] = []

    def recorded(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content) if request.content else None)
        return account(request)

    async with client(recorded, Waits()) as api:
        await release_again(api, endpoint, NOON)
    assert [body for body in bodies if body] == [{"env": {"A": "1", ALIASES_AT: NOON.isoformat()}}]
    assert account.endpoints[endpoint] == {"id": endpoint, **FIELDS, "env": {"A": "1", ALIASES_AT: NOON.isoformat()}}


async def test_no_difference_sends_nothing(account: Account, endpoint: str) -> None:
    async with client(account, Waits()) as api:
        await change_variables(api, endpoint, dict)
    assert account.writes == []


Answer = Callable[[httpx.Request], httpx.Response]


def meanwhile(account: Account, change: Callable[[], None], *, after: bool) -> Answer:
    """Somebody else changes the endpoint right before our first change arrives, or right after it."""
    changes = [change]

    def answer(request: httpx.Request) -> httpx.Response:
        other = changes.pop() if request.method == "PATCH" and changes else None
        if other and not after:
            other()
        answered = account(request)
        if other and after:
            other()
        return answered

    return answer


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("other", [{"env": {"A": "1", "B": "2"}}, {"disk": 80}])
async def test_a_change_by_somebody_else_is_told(
    account: Account, endpoint: str, other: dict[str, Any], after: bool
) -> None:
    answer = meanwhile(account, lambda: account.change("serverless", endpoint, **other), after=after)
    async with client(answer, Waits()) as api:
        with pytest.raises(DeploymentError, match=r"by somebody else at the same moment.*run the same command again"):
            await release_again(api, endpoint, NOON)
        await release_again(api, endpoint, NOON.replace(hour=13))
    assert account.endpoints[endpoint]["env"][ALIASES_AT] == NOON.replace(hour=13).isoformat()


async def test_a_change_that_is_repeated_counts_as_one(account: Account, endpoint: str) -> None:
    account.fail("PATCH serverless", 500)
    async with client(account, Waits()) as api:
        await release_again(api, endpoint, NOON)
    assert account.writes == ["PATCH serverless"] * 2


async def test_a_missing_endpoint_and_unreadable_variables_are_refused(account: Account) -> None:
    unreadable = account.add("serverless", **{**FIELDS, "env": None})
    async with client(account, Waits()) as api:
        with pytest.raises(DeploymentError, match="has no endpoint gone"):
            await release_again(api, "gone", NOON)
        with pytest.raises(DeploymentError, match="tells no variables"):
            await release_again(api, unreadable, NOON)
    assert account.writes == []
