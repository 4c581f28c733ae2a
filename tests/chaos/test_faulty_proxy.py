"""The proxy before a cloud's stand-in: a call that no fault strikes arrives and is answered as without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from tests.chaos.clouds.faulty_proxy import Call, FaultyProxy
from tests.processes.reopened import ReopenedPort


class Echo(ReopenedPort):
    """A server that answers with what it was asked, and keeps it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str | None, str | None, bytes]] = []
        self._listen()

    def _listen(self) -> None:
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                calls.append((self.command, self.path, self.headers["x-amz-target"], self.headers["host"], body))
                self.send_response(201)
                self.send_header("x-of-the-cloud", "kept")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: Any) -> None: ...

        self._open(Handler)

    def close(self) -> None:
        self._hang_up()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@contextmanager
def proxy_before(echo: Echo) -> Iterator[tuple[FaultyProxy, list[bytes]]]:
    accepted: list[bytes] = []

    def name_of(call: Call) -> str | None:
        return "run" if call.headers.get("x-amz-target") == "Create" else None

    with ExitStack() as stack:
        yield (
            FaultyProxy(
                stack,
                f"http://127.0.0.1:{echo.port}",
                name_of=name_of,
                accepted=lambda call, answer: accepted.append(call.body + answer.content),
            ),
            accepted,
        )


def test_call_passes_the_proxy_as_it_is(echo: Echo) -> None:
    with proxy_before(echo) as (proxy, accepted), httpx.Client(trust_env=False) as http:
        asked = f"{proxy.url}/a%2Fb?x=1%202&x=3"
        headers = {"x-amz-target": "Look", "host": "cloud.example"}
        answer = http.put(asked, content=b"\x00body", headers=headers)
        assert (answer.status_code, answer.text, answer.headers["x-of-the-cloud"]) == (201, "ok", "kept")
        assert echo.calls == [("PUT", "/a%2Fb?x=1%202&x=3", "Look", "cloud.example", b"\x00body")]
        assert accepted == []


def test_submission_whose_answer_is_lost_is_known_to_be_accepted(echo: Echo) -> None:
    with proxy_before(echo) as (proxy, accepted), httpx.Client(trust_env=False) as http:
        proxy.faults.add("run", "drop_answer")
        proxy.faults.add("run", "respond", status=503)
        with pytest.raises(httpx.TransportError):
            http.put(proxy.url, content=b"job", headers={"x-amz-target": "Create"})
        refused = http.put(proxy.url, content=b"job", headers={"x-amz-target": "Create"})
        assert (refused.status_code, len(echo.calls), accepted) == (503, 1, [b"jobok"])
        with proxy.outage(), pytest.raises(httpx.ConnectError):
            http.put(proxy.url, content=b"job", headers={"x-amz-target": "Create"})
        assert http.put(proxy.url, content=b"job", headers={"x-amz-target": "Create"}).status_code == 201
