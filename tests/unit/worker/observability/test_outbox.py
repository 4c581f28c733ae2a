"""Notices reach their receivers by real HTTP and SMTP, without secrets, and never hold up the work."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

import pytest
from aiosmtpd.controller import Controller
from prometheus_client import REGISTRY

from lora_worker.configuration.settings import NoticeName
from lora_worker.errors import SettingsError
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.observability.outbox import NoticeKind, OperatorNotice, Outbox, open_outbox
from sandbox.processes import free_ports
from tests.processes.waiting import PATIENCE_SECONDS, until

NOTICE = OperatorNotice(NoticeKind.JOBS_HELD, "Training jobs are held", "3 jobs wait.", "failure")


def settings(**changes: Any) -> RunPodSettings:
    return RunPodSettings(
        supabase_url="http://x",
        supabase_service_role_key="plain-service-key",
        supabase_publishable_key="plain-pub-key",
        gpu_cluster_api_url="http://x",
        gpu_cluster_api_key="plain-gpu-key",
        _env_file=None,
        **changes,
    )


class Webhook:
    """A receiver of HTTP on this machine, which answers when it is told to."""

    def __init__(self, *, status: int = 200) -> None:
        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        self.may_answer = threading.Event()
        self.may_answer.set()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hook.may_answer.wait(PATIENCE_SECONDS)
                self.send_response(status)
                self.end_headers()
                hook.received.put(json.loads(body))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/hook-of-ops"

    def __enter__(self) -> Webhook:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self.server.shutdown()
        self.server.server_close()

    def next(self) -> dict[str, Any]:
        return self.received.get(timeout=PATIENCE_SECONDS)


class Mailbox:
    def __init__(self) -> None:
        self.mails: queue.Queue[Any] = queue.Queue()

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.mails.put(envelope)
        return "250 OK"


@contextmanager
def mail_server() -> Iterator[tuple[Mailbox, str]]:
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_ports(1)[0])
    controller.start()
    try:
        port = controller.server.sockets[0].getsockname()[1]
        yield mailbox, f"mailto://127.0.0.1:{port}?from=worker@example.org&to=ops@example.org"
    finally:
        controller.stop()


def counted(result: str, kind: str = "jobs_held") -> float:
    return REGISTRY.get_sample_value("lora_worker_notices_total", {"kind": kind, "result": result}) or 0.0


def test_notice_reaches_webhook_and_mailbox() -> None:
    with Webhook() as hook, mail_server() as (mailbox, mail_url):
        outbox = open_outbox(settings(notify_urls=f"{hook.url}, {mail_url}"))
        assert outbox.is_open
        sent = counted("sent")
        outbox.post(NOTICE)
        told = hook.next()
        assert (told["title"], told["message"], told["type"]) == (NOTICE.title, NOTICE.body, "failure")
        envelope = mailbox.mails.get(timeout=PATIENCE_SECONDS)
        assert envelope.rcpt_tos == ["ops@example.org"]
        assert "3 jobs wait." in envelope.content.decode()
        outbox.close(seconds=PATIENCE_SECONDS)
        assert counted("sent") == sent + 2


def test_notice_holds_no_secret_and_no_control_character() -> None:
    with Webhook() as hook:
        outbox = open_outbox(settings(notify_urls=hook.url))
        key = "https://x/?token=abc.def"
        outbox.post(
            OperatorNotice(NoticeKind.NO_GPU, "t\x00\r\nBcc: x", f"plain-service-key rpa_ABCDEF {key} {hook.url}")
        )
        told = hook.next()
        outbox.close(seconds=PATIENCE_SECONDS)
    for secret in ("plain-service-key", "rpa_ABCDEF", "abc.def", "hook-of-ops", "\r", "\x00"):
        assert secret not in told["title"] + told["message"]


def test_only_chosen_kinds_are_sent() -> None:
    with Webhook() as hook:
        outbox = open_outbox(settings(notify_urls=hook.url, notify_about="no_gpu, jobs_held"))
        outbox.post(OperatorNotice(NoticeKind.JOB_ENDED, "not this", ""))
        outbox.post(NOTICE)
        assert hook.next()["title"] == NOTICE.title
        outbox.close(seconds=PATIENCE_SECONDS)
        assert hook.received.empty()


def test_refused_notice_is_counted_and_reaches_the_others() -> None:
    with Webhook(status=500) as broken, Webhook() as hook:
        outbox = open_outbox(settings(notify_urls=f"{broken.url},{hook.url}"))
        failed, sent = counted("failed"), counted("sent")
        outbox.post(NOTICE)
        hook.next()
        outbox.close(seconds=PATIENCE_SECONDS)
        assert broken.received.qsize() == 1
        assert (counted("failed"), counted("sent")) == (failed + 1, sent + 1)


class Stuck:
    """A receiver that takes a notice and never comes back."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.end = threading.Event()

    def notify(self, **_: Any) -> bool:
        self.begun.set()
        self.end.wait(PATIENCE_SECONDS)
        raise RuntimeError("https://hooks.example.org/secret")


def test_receiver_that_hangs_holds_up_neither_work_nor_stop() -> None:
    stuck = Stuck()
    outbox = Outbox([stuck], kinds=["jobs_held"])  # type: ignore[list-item]
    dropped, failed = counted("dropped"), counted("failed")
    outbox.post(NOTICE)
    assert stuck.begun.wait(PATIENCE_SECONDS)
    for _ in range(105):
        outbox.post(NOTICE)
    assert counted("dropped") == dropped + 5
    outbox.close(seconds=0.01)
    assert outbox._thread is not None
    assert outbox._thread.is_alive()
    assert outbox._thread.daemon
    stuck.end.set()
    until(lambda: counted("failed") > failed, "its exception is counted")


def test_outbox_without_receivers_starts_no_thread() -> None:
    outbox = open_outbox(settings())
    outbox.post(NOTICE)
    assert (outbox.is_open, outbox._thread) == (False, None)
    outbox.close(seconds=1)


def test_url_that_nobody_knows_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsError, match="number 2 is none that Apprise") as refused:
        open_outbox(settings(notify_urls="json://127.0.0.1:1/a,unheard-of://user:hunter2@x"))
    assert "hunter2" not in str(refused.value)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(SettingsError, match=r"pip install '\.\[notify\]' in the clone"):
        open_outbox(settings(notify_urls="json://127.0.0.1:1/a"))


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("", []),
        ("json://a/b , mailto://u:p@h?to=a@b.c,d@e.f", ["json://a/b", "mailto://u:p@h?to=a@b.c,d@e.f"]),
        ("slack://a/b/c json://d\njson://e", ["slack://a/b/c", "json://d", "json://e"]),
    ],
)
def test_urls_are_split_before_the_next_url(text: str, urls: list[str]) -> None:
    found = settings(notify_urls=text).notify_urls
    assert [url.get_secret_value() for url in found] == urls


@pytest.mark.parametrize("text", ["mail to ops", ",".join(["json://a"] * 11)])
def test_setting_that_holds_no_urls_or_too_many_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        settings(notify_urls=text)


def test_setting_and_outbox_know_the_same_kinds() -> None:
    assert list(get_args(NoticeName)) == list(NoticeKind)
    assert set(settings().notify_about) == set(NoticeKind)
    with pytest.raises(ValueError, match="notify_about"):
        settings(notify_about="weather")
