"""The commands about webhooks, as text and JSON."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import httpx
import pytest
from standardwebhooks import Webhook

from lora_worker.database.webhook_rows import WebhookFilter, WebhookState
from lora_worker.doctor.webhooks import examine_endpoints
from tests.commands import check_keys, give_services, run_command
from tests.scripted import FakeQueue, make_services

pytestmark = pytest.mark.usefixtures("environment")

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NAME = "hooks.example.com-cfac6cc9"


def state(**changed: Any) -> WebhookState:
    return {
        "name": NAME, "is_enabled": True, "added_at": "2026-11-26T01:00:00Z",
        "seen_at": "2026-11-27T01:00:00Z", "failing_since": "2026-11-27T01:00:00Z",
        "last_delivered_at": None, "problem": "it answered 500", "waiting": 2, "given_up": 1,
        "oldest_waiting_at": "2026-11-27T01:00:00Z",
        "failures": [
            {"event": "msg_1", "type": "job.failed", "job_id": UUID(int=7), "state": "given_up", "attempts": 10,
             "status": 500, "problem": "it answered 500", "next_at": None,
             "settled_at": "2026-11-27T02:30:00Z"}
        ],
        **changed,
    }  # type: ignore[typeddict-item]  # fmt: skip


class Queue(FakeQueue):
    def __init__(self) -> None:
        super().__init__()
        self.states = [state()]
        self.wanted: list[WebhookFilter] = []
        self.found = 2

    async def webhook_state(self) -> list[WebhookState]:
        return self.states

    async def replay_webhook_events(self, wanted: WebhookFilter) -> int:
        self.wanted.append(wanted)
        return self.found

    async def enable_webhook_endpoint(self, name: str) -> bool:
        return name == NAME


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    give_services(monkeypatch, make_services(queue=made))
    return made


def test_endpoints_are_listed_with_their_last_failures(queue: Queue) -> None:
    text = run_command("webhooks", "list").stdout
    for part in (NAME, "failing", "msg_1", "it answered 500; 10 tries, given up ", "events since"):
        assert part in text
    check_keys("webhooks list", json.loads(run_command("webhooks", "list", "--json").stdout))
    queue.states = []
    assert "set LORA_WORKER_WEBHOOKS" in run_command("webhooks", "list").stdout


def test_replay_takes_one_choice_and_tells_how_many(queue: Queue) -> None:
    done = run_command("webhooks", "replay", "msg_1", "--endpoint", NAME, "--json")
    check_keys("webhooks replay", json.loads(done.stdout))
    assert run_command("webhooks", "replay", "--failed").exit_code == 0
    assert run_command("webhooks", "replay", "--since", "2026-11-26").exit_code == 0
    assert queue.wanted == [
        {"endpoint": NAME, "event": "msg_1"}, {"failed": True}, {"since": "2026-11-26T00:00:00+00:00"},
    ]  # fmt: skip
    assert run_command("webhooks", "replay").exit_code == 2
    two = run_command("webhooks", "replay", "msg_1", "--failed")
    assert (two.exit_code, "give exactly one of these" in two.stderr) == (2, True)
    queue.found = 0
    assert run_command("webhooks", "replay", "msg_2").exit_code == 1


def test_endpoint_is_enabled_by_its_name(queue: Queue) -> None:
    done = run_command("webhooks", "enable", NAME, "--json")
    check_keys("webhooks enable", json.loads(done.stdout))
    assert run_command("webhooks", "enable", "other").exit_code == 1


def test_without_an_endpoint_the_test_says_what_to_set() -> None:
    done = run_command("webhooks", "test")
    assert (done.exit_code, "LORA_WORKER_WEBHOOKS names no endpoint: set it" in done.output) == (2, True)


def test_test_event_is_signed_and_its_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[httpx.Request] = []

    async def answer(_: Any, request: httpx.Request) -> httpx.Response:
        got.append(request)
        return httpx.Response(200 if len(got) == 1 else 503)

    monkeypatch.setattr("lora_worker.storage.public_web.PublicTransport.handle_async_request", answer)
    monkeypatch.setenv("LORA_WORKER_WEBHOOKS", f"https://hooks.example.com/in?token=geheim {SECRET}")
    done = run_command("webhooks", "test", "--json")
    assert done.exit_code == 0, done.stderr
    check_keys("webhooks test", json.loads(done.stdout))
    event = Webhook(SECRET).verify(got[0].content, dict(got[0].headers))
    assert event["type"] == "webhook.test"
    failed = run_command("webhooks", "test")
    assert failed.exit_code == 1
    assert "it answered 503" in failed.stdout
    assert "geheim" not in failed.stdout
    assert run_command("webhooks", "test", "--endpoint", "other").exit_code == 2


@pytest.mark.parametrize(
    ("changed", "ok", "finding"),
    [
        ({}, False, "takes no events: it answered 500; 2 wait"),
        ({"is_enabled": False}, False, "has answered 410"),
        ({"failing_since": None}, None, "has missed 1 event"),
        ({"failing_since": None, "given_up": 0}, True, "1 endpoint of webhooks, and none fails"),
        ({"name": "another"}, True, "1 endpoint of webhooks, and none fails"),
    ],
    ids=["failing", "gone", "missed", "well", "new"],
)
def test_doctor_tells_of_endpoints_that_fail(changed: dict[str, Any], ok: bool | None, finding: str) -> None:
    (check,) = examine_endpoints([NAME], [state(**changed)])
    assert check.ok is ok
    assert finding in check.finding
