"""An adopting worker derives a run's token, even after a key change; one that can't logs it and breaks nothing."""

from __future__ import annotations

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import pytest
from pydantic import SecretStr

from lora_contract.grants import open_urls
from lora_worker.configuration.tokens import RunTokens, token_sha256
from lora_worker.runs import advance
from lora_worker.runs.applying import apply
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps import launching
from lora_worker.services import Services
from tests.scripted import START, FakeLauncher, FakeQueue, assignment, make_services

FILE = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}


def services_with(key: str, secret: str | None = None, previous: tuple[str, ...] = ()) -> Services:
    """The services of a worker with this service key and these secrets for tokens."""
    settings = make_services().settings.model_copy(
        update={
            "supabase_service_role_key": SecretStr(key),
            "token_secret": secret and SecretStr(secret),
            "previous_token_secrets": tuple(map(SecretStr, previous)),
        }
    )
    return make_services(settings=settings)


def launched_by(services: Services) -> Any:
    """An assignment of a run that these services launched."""
    made = assignment()
    token = services.tokens.of(made.run.id, None)
    assert token
    run = made.run.model_copy(update={"token_sha256": token_sha256(token)})
    return made.model_copy(update={"run": run}), token


def test_adopting_worker_derives_the_same_token() -> None:
    run = uuid4()
    tokens = RunTokens(["secret"])
    assert tokens.of(run, None) == RunTokens(["secret"]).of(run, None)
    assert tokens.of(run, None) != tokens.of(uuid4(), None)
    assert len(tokens.of(run, None) or "") == 64


def test_token_hash_is_the_one_the_database_stores() -> None:
    assert token_sha256("abc") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    "adopter",
    [
        services_with("sb_secret_new", previous=("legacy",)),
        services_with("sb_secret_new", secret="shared", previous=("other", "legacy")),
        services_with("legacy", secret="shared"),
    ],
    ids=["rotated", "rotated twice", "secret of its own since"],
)
def test_run_keeps_its_token_when_the_key_changes(adopter: Services) -> None:
    taken, token = launched_by(services_with("legacy"))
    assert HeldRun.take(adopter, taken, asked_at=0).token == token


def test_workers_with_the_same_secret_derive_the_same_tokens() -> None:
    taken, token = launched_by(services_with("legacy", secret="shared"))
    assert HeldRun.take(services_with("sb_secret_x", secret="shared"), taken, asked_at=0).token == token


@pytest.mark.parametrize(("secret", "present"), [("shared", "shared"), (None, "sb_secret_new")])
def test_run_without_a_token_gets_one_of_the_current_secret(secret: str | None, present: str) -> None:
    services = services_with("sb_secret_new", secret=secret, previous=("former",))
    fresh = assignment(None, status="claimed")
    assert HeldRun.take(services, fresh, asked_at=0).token == RunTokens([present]).of(fresh.run.id, None)


async def test_run_of_an_unknown_secret_gets_no_grant_it_cannot_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    granted = await grant(monkeypatch, launched_by(services_with("legacy"))[0], services_with("sb_secret_new"))
    assert granted == []
    log = capsys.readouterr().out
    assert "LORA_WORKER_PREVIOUS_TOKEN_SECRETS" in log
    assert log.count("another secret") == 1


async def test_relaunched_run_is_granted_with_the_token_it_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first launch may have a token of an unknown secret, since the database knows only the latest token."""
    queue: Any = FakeQueue()
    monkeypatch.setattr(
        queue, "begin_launch", lambda *_, **__: asyncio.sleep(0, {"may_launch": True, "reason": None}), raising=False
    )
    monkeypatch.setattr(queue, "record_launch", lambda *_, **__: asyncio.sleep(0, True), raising=False)
    launcher: Any = FakeLauncher()
    monkeypatch.setattr(launcher, "launch", lambda *_: asyncio.sleep(0, "ext"), raising=False)
    services = make_services(queue=queue, launcher=launcher)
    holding = HeldRun.take(services, assignment(None, status="claimed", token_sha256="0" * 64), asked_at=START)
    assert holding.token is None
    sent: Any = SimpleNamespace(
        channel=SimpleNamespace(token="sent"), output=SimpleNamespace(serving_name=None), model_dump=lambda **_: {}
    )
    plan: Any = MagicMock()
    begun = await launching.begin_launch(holding, sent, plan)
    assert begun is not None
    apply(holding, begun)
    assert holding.token == "sent"


async def test_a_grant_is_sealed_with_the_token_that_the_trainer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, token = launched_by(services_with("legacy"))
    (sealed,) = await grant(monkeypatch, taken, services_with("sb_secret_new", previous=("legacy",)))
    assert set(open_urls(token, sealed)) == {"a", "manifest.json"}


async def grant(monkeypatch: pytest.MonkeyPatch, taken: Any, adopter: Services) -> list[str]:
    """The grants that an adopting worker seals in two cycles for a trainer that asks to upload."""
    sealed: list[str] = []

    async def grant_upload(self: Any, run_id: Any, lease_token: Any, *, request: Any, sealed_urls: str) -> bool:
        sealed.append(sealed_urls)
        return True

    async def sign_upload(bucket: str, path: str) -> str:
        return f"http://storage/{path}"

    monkeypatch.setattr(FakeQueue, "grant_upload", grant_upload, raising=False)
    storage = type("Signing", (), {"sign_upload": staticmethod(sign_upload)})()
    services = make_services(settings=adopter.settings, storage=storage)
    holding = HeldRun.take(services, taken, asked_at=services.clock())
    holding.news = holding.news.model_copy(update={"upload_request": [FILE]})
    for _ in range(2):
        await advance.advance(holding)
    return sealed
