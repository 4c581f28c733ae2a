"""Events reach a receiver that checks them as the standard's own library does: at least once, and in order per job."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from lora_worker.database.webhook_rows import WebhookDelivery, WebhookOutcome
from lora_worker.duties import webhooks
from lora_worker.duties.webhooks import Webhooks
from tests.database.rows import Database
from tests.scripted import FakeQueue, make_services

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
FORMER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


class Receiver(ThreadingHTTPServer):
    """Answers with the statuses that it is given, then 200, and keeps what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def events(self, secret: str = SECRET) -> list[tuple[str, str, str]]:
        """Id, type and job of what came, each verified as the standard's library does it."""
        found = []
        for headers, body in self.got:
            event = Webhook(secret).verify(body, headers)
            found.append((headers["webhook-id"], event["type"], event["data"]["job_id"]))
        return found


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        status = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(status)
        self.send_header("location", "http://127.0.0.1:9/elsewhere")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def receiving() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


class SqlQueue(FakeQueue):
    """The calls about webhooks, carried out by a real database."""

    def __init__(self, db: Database) -> None:
        super().__init__()
        self._db = db

    async def claim_webhook_deliveries(
        self, endpoints: list[str], max_deliveries: int, lease_seconds: int
    ) -> list[WebhookDelivery]:
        return list(self._db.call("claim_webhook_deliveries", endpoints, max_deliveries, lease_seconds))

    async def note_webhook_delivery(self, event: str, endpoint: str, lease_token: Any, outcome: WebhookOutcome) -> bool:
        return bool(self._db.call("note_webhook_delivery", event, endpoint, lease_token, dict(outcome)))


def duty(db: Database, *endpoints: str, hosts: tuple[str, ...]) -> Webhooks:
    services = make_services(queue=SqlQueue(db))
    settings = services.settings.model_copy(
        update={"webhooks": tuple(map(SecretStr, endpoints)), "webhook_hosts": hosts}
    )
    return Webhooks(make_services(queue=SqlQueue(db), settings=settings))


def at(receiver: Receiver, secrets: str = SECRET) -> str:
    return f"http://{receiver.host}/hooks {secrets}"


async def test_each_event_arrives_signed_and_in_order(db: Database, receiver: Receiver) -> None:
    sending = duty(db, at(receiver), hosts=(receiver.host,))
    await sending.run_once()
    runs = [db.running_run()[0] for _ in range(3)]
    for run in runs:
        db.settle(run)
    receiver.answers = [500]
    await sending.run_once()
    db.rows("update training_webhook_deliveries set next_at = now()")
    await sending.run_once()
    events = receiver.events()
    assert len(events) == 7
    assert len({event for event, _, _ in events}) == 6
    for run in runs:
        of_job = list(dict.fromkeys((event, kind) for event, kind, job in events if job == str(run["job_id"])))
        assert [kind for _, kind in of_job] == ["job.started", "job.completed"]
    with pytest.raises(WebhookVerificationError):
        receiver.events(FORMER)


async def test_worker_that_dies_before_its_note_delivers_again(
    db: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = duty(db, at(receiver), hosts=(receiver.host,))
    await sending.run_once()
    db.running_run()

    def die(name: str) -> None:
        raise SystemExit(name)

    with monkeypatch.context() as patch:
        patch.setattr(webhooks, "crash_point", die)
        with pytest.raises(SystemExit, match=r"worker\.webhook\.after_delivery"):
            await sending.run_once()
    assert (await sending.run_once()).done == 0
    db.rows("update training_webhook_deliveries set lease_expires_at = now()")
    assert (await sending.run_once()).done == 1
    (first, *_), (second, *_) = receiver.events()
    assert first == second
    assert receiver.got[0][1] == receiver.got[1][1]


async def test_receiver_may_know_the_former_secret_or_the_new_one(db: Database, receiver: Receiver) -> None:
    sending = duty(db, at(receiver, f"{SECRET} {FORMER}"), hosts=(receiver.host,))
    await sending.run_once()
    db.running_run()
    await sending.run_once()
    assert receiver.events(SECRET) == receiver.events(FORMER) != []


async def test_redirect_is_not_followed_and_410_ends_the_endpoint(db: Database, receiver: Receiver) -> None:
    sending = duty(db, at(receiver), hosts=(receiver.host,))
    await sending.run_once()
    db.settle(db.running_run()[0])
    receiver.answers = [302]
    assert (await sending.run_once()).done == 0
    (state,) = db.call("training_webhook_state")
    assert "redirects (302), which is not followed" in state["problem"]
    receiver.answers = [410]
    db.rows("update training_webhook_deliveries set next_at = now()")
    assert (await sending.run_once()).done == 0
    (state,) = db.call("training_webhook_state")
    assert (state["is_enabled"], state["given_up"]) == (False, 2)
    assert len(receiver.got) == 2


async def test_private_address_gets_nothing_unless_it_is_named(db: Database, receiver: Receiver) -> None:
    sending = duty(db, f"https://{receiver.host}/hooks {SECRET}", hosts=())
    await sending.run_once()
    db.running_run()
    assert (await sending.run_once()).done == 0
    (state,) = db.call("training_webhook_state")
    assert "does not lie on a public address" in state["problem"]
    assert receiver.got == []
