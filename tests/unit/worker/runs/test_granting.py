"""A run whose upload URLs can't be issued is still polled, limited and cancelled."""

from __future__ import annotations

from typing import Any

import pytest

from lora_worker.errors import LeaseLostError, ObjectMissingError, ServiceError, ServiceUnavailableError
from lora_worker.launchers.base import LaunchState
from lora_worker.runs import advance
from lora_worker.runs.state.held_run import HeldRun
from tests.scripted import FakeQueue, ForgetfulLauncher, assignment, make_services, note_settlings

FILE = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}


class Shelves:
    """A storage that signs upload URLs or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.signed: list[str] = []

    async def sign_upload(self, bucket: str, path: str) -> str:
        if self.failure:
            raise self.failure
        self.signed.append(path)
        return f"http://storage/{path}"


def asking(
    monkeypatch: pytest.MonkeyPatch,
    request: Any,
    failure: Exception | None = None,
    state: LaunchState = LaunchState.RUNNING,
) -> tuple[HeldRun, list[Any]]:
    """A held run whose trainer asks to upload, and the list of endings with which it is settled."""
    endings = note_settlings(monkeypatch)
    services = make_services(launcher=ForgetfulLauncher(state), storage=Shelves(failure))
    holding = HeldRun.take(services, assignment(), asked_at=services.clock())
    holding.news = holding.news.model_copy(update={"upload_request": request})
    return holding, endings


STORAGE_FAULTS = [
    ServiceUnavailableError("storage", "not available"),
    ObjectMissingError("storage", "the bucket is not there", status=404),
]


@pytest.mark.parametrize("failure", STORAGE_FAULTS, ids=lambda failure: type(failure).__name__)
async def test_run_is_polled_while_the_storage_issues_no_urls(
    monkeypatch: pytest.MonkeyPatch, failure: ServiceError
) -> None:
    holding, _ = asking(monkeypatch, [FILE], failure)
    await advance.advance(holding)
    assert holding.report is not None
    assert holding.put_off == str(failure)
    assert holding.news.upload_request == [FILE]


async def test_ended_run_is_settled_while_the_storage_issues_no_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    holding, endings = asking(monkeypatch, [FILE], STORAGE_FAULTS[0], LaunchState.FAILED)
    await advance.advance(holding)
    assert [ending.failure.code for ending in endings] == ["trainer_crashed"]


@pytest.mark.parametrize("request_", [[FILE], [1]])
async def test_cancelled_run_is_stopped_and_gets_no_grant(monkeypatch: pytest.MonkeyPatch, request_: Any) -> None:
    holding, endings = asking(monkeypatch, request_, STORAGE_FAULTS[0])
    holding.news = holding.news.model_copy(update={"cancel_requested": True})
    await advance.advance(holding)
    assert [ending.failure for ending in endings] == [None]


@pytest.mark.parametrize("request_", [[1], {}, {"path": "a"}, [FILE | {"path": "../another-run/a"}]])
async def test_unreadable_upload_request_affects_only_its_own_run(
    monkeypatch: pytest.MonkeyPatch, request_: Any
) -> None:
    holding, endings = asking(monkeypatch, request_)
    await advance.advance(holding)
    (ending,) = endings
    assert ending.failure.code == "upload_request_invalid"
    assert holding.services.storage.signed == []  # type: ignore[attr-defined]


async def test_lost_lease_while_granting_ends_the_holding(monkeypatch: pytest.MonkeyPatch) -> None:
    holding, _ = asking(monkeypatch, [FILE])

    async def sign_upload(bucket: str, path: str) -> str:
        holding.services.clock.now += 61  # type: ignore[attr-defined]
        return "url"

    monkeypatch.setattr(holding.services.storage, "sign_upload", sign_upload)
    with pytest.raises(LeaseLostError):
        await advance.advance(holding)


async def test_upload_request_is_granted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[Any] = []

    async def grant_upload(self: FakeQueue, run_id: Any, lease_token: Any, *, request: Any, sealed_urls: str) -> bool:
        granted.append(request)
        return True

    monkeypatch.setattr(FakeQueue, "grant_upload", grant_upload, raising=False)
    holding, _ = asking(monkeypatch, [FILE])
    await advance.advance(holding)
    await advance.advance(holding)
    assert granted == [[FILE]]
