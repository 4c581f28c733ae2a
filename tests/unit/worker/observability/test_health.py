"""The health endpoints answer even if the event loop hangs or other callers block."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

import httpx
import pytest

from lora_worker.errors import PortTakenError
from lora_worker.observability import health
from lora_worker.observability.health import HealthServer
from lora_worker.observability.liveness import Pulse
from lora_worker.observability.readiness import Readiness
from tests.processes.waiting import PATIENCE_SECONDS
from tests.scripted import Clock


class Problems:
    """The answers of the two checks, which a test changes."""

    alive: str | None = None
    ready: str | None = None


@pytest.fixture
def problems() -> Problems:
    return Problems()


@pytest.fixture
def server(problems: Problems) -> Iterator[HealthServer]:
    one = HealthServer("127.0.0.1", 0, alive=lambda: problems.alive, ready=lambda: problems.ready)
    yield one
    one.stop()


def get(server: HealthServer, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{server.port}{path}", timeout=60)


def test_health_endpoints_report_the_problem(server: HealthServer, problems: Problems) -> None:
    assert get(server, "/readyz").json() == {"ok": True, "problem": None}
    problems.ready = "Supabase is not reachable"
    answer = get(server, "/readyz")
    assert (answer.status_code, answer.json()["problem"]) == (503, "Supabase is not reachable")
    assert get(server, "/healthz").status_code == 200
    problems.alive = "it hangs"
    assert get(server, "/healthz").status_code == 503
    assert "lora_worker_held_runs" in get(server, "/metrics").text
    assert get(server, "/else").status_code == 404


def connect(server: HealthServer, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(sent)
    return connection


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nab",
    ],
    ids=["nothing", "half a header", "half a body"],
)
def test_partial_request_blocks_neither_others_nor_the_stop(sent: bytes) -> None:
    server = HealthServer("127.0.0.1", 0, alive=lambda: None, ready=lambda: None)
    halves = [connect(server, sent) for _ in range(8)]
    assert get(server, "/healthz").status_code == 200
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    stopping.join(PATIENCE_SECONDS)
    assert not stopping.is_alive()
    for half in halves:
        with suppress(ConnectionResetError):
            assert half.recv(1) == b""
        half.close()


def test_stop_works_when_the_server_loop_ends_by_itself() -> None:
    server = HealthServer("127.0.0.1", 0, alive=lambda: None, ready=lambda: None)
    pull = server._server.pull_trigger

    def pull_late() -> None:
        # On a busy machine the loop may notice that it must end before it is woken up.
        pull()
        server._thread.join(10)
        pull()

    server._server.pull_trigger = pull_late
    server.stop()
    assert not server._thread.is_alive()
    with pytest.raises(OSError):  # noqa: PT011 (refused or reset, by the time of the look)
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n", b"431"),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000\r\n\r\n", b"413"),
        (b"\x16\x03\x01\x00\xff nonsense\r\n\r\n", b"400"),
    ],
    ids=["an endless header", "a large body", "no HTTP"],
)
def test_oversized_or_malformed_request_is_refused(server: HealthServer, sent: bytes, status: bytes) -> None:
    with connect(server, b"") as connection:
        with suppress(ConnectionError):
            connection.sendall(sent)
        with suppress(ConnectionError):
            assert status in connection.recv(1000)
    assert get(server, "/healthz").status_code == 200


def test_slow_connection_is_closed_in_time(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_CONNECTION_SECONDS", 0.3)
    with connect(server, b"GET /healthz HTTP/1.1\r\nX: ") as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                try:
                    connection.sendall(b"x")
                    if connection.recv(1) == b"":
                        return
                except ConnectionError:
                    return
    pytest.fail("the connection was still open")


def test_connections_above_the_limit_wait_for_others_to_end(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_CONNECTION_SECONDS", 1.0)
    idle = [connect(server, b"GET ") for _ in range(health._MAX_CONNECTIONS * 2)]
    assert len(server._connections) <= health._MAX_CONNECTIONS + 3
    assert get(server, "/healthz").status_code == 200
    for connection in idle:
        connection.close()


def test_port_in_use_or_invalid_address_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortTakenError, match="LORA_WORKER_HTTP_PORT"):
        HealthServer("127.0.0.1", taken.getsockname()[1], alive=lambda: None, ready=lambda: None)
    with pytest.raises(PortTakenError, match="LORA_WORKER_HTTP_HOST"):
        HealthServer("x" * 300, 0, alive=lambda: None, ready=lambda: None)


async def test_hung_event_loop_is_reported_as_unhealthy() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    server = HealthServer("127.0.0.1", 0, alive=lambda: pulse.problem, ready=lambda: None)
    beating = asyncio.create_task(pulse.keep())
    await asyncio.sleep(0)
    clock.now += 31
    # This call blocks the event loop; the health server answers from another thread.
    answer = get(server, "/healthz")
    assert (answer.status_code, answer.json()["problem"]) == (503, "the event loop has not turned for 31 s")
    pulse.beat()
    assert get(server, "/healthz").status_code == 200
    beating.cancel()
    server.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readiness(clock: Clock) -> Readiness:
    made = Readiness(clock, stuck_seconds=300)
    assert made.problem == "starting"
    made.end("start")
    return made


def test_failed_round_is_a_problem_until_one_succeeds(readiness: Readiness) -> None:
    readiness.end("claim", "Supabase is not reachable")
    assert readiness.problem == "Supabase is not reachable"
    readiness.end("claim")
    assert readiness.problem is None


def test_round_that_does_not_end_is_a_problem(readiness: Readiness, clock: Clock) -> None:
    readiness.begin("renew")
    clock.now += 300
    assert readiness.problem is None
    clock.now += 1
    assert readiness.problem == "the round renew has not ended for 301 s"
    readiness.end("renew")
    assert readiness.problem is None


def test_failed_settlings_are_a_problem_until_one_succeeds(readiness: Readiness) -> None:
    one, other = uuid4(), uuid4()
    readiness.settling_failed(one, "refused")
    readiness.settling_failed(other, "refused")
    assert readiness.problem is None
    readiness.settling_failed(one, "refused: disk full")
    assert readiness.problem == "no run could be settled, 3 times in a row: refused: disk full"
    readiness.settled()
    assert readiness.problem is None
    for _ in range(3):
        readiness.settling_failed(one, "refused")
    readiness.forget(one)
    assert readiness.problem is None


def test_rounds_that_postpone_every_run_are_a_problem(readiness: Readiness) -> None:
    for put_off in (["away"], ["away", None], ["away"], ["away", "away"]):
        readiness.note_runs(list(put_off))
    assert readiness.problem is None
    readiness.note_runs(["away"])
    assert readiness.problem == "no run could be worked on in 3 rounds: away"
    readiness.note_runs([])
    assert readiness.problem is None


@pytest.fixture
def woken() -> Iterator[tuple[HealthServer, list[str]]]:
    calls: list[str] = []

    def wake(call: str) -> int:
        calls.append(call)
        return 204 if call == "right" else 404

    one = HealthServer("127.0.0.1", 0, alive=lambda: None, ready=lambda: None, wake=wake)
    yield one, calls
    one.stop()


def test_wake_up_is_taken_by_post_and_its_large_body_thrown_away(woken: tuple[HealthServer, list[str]]) -> None:
    server, calls = woken
    url = f"http://127.0.0.1:{server.port}/wake/"
    with httpx.Client(timeout=60) as client:
        assert client.post(f"{url}right", content=b"x" * 2_000_000).status_code == 204
        assert client.post(f"{url}right", json={"id": "job"}).status_code == 204
        assert client.post(f"{url}wrong").status_code == 404
        assert client.get(f"{url}right").status_code == 404
        # Other paths keep their small bound, and the connection serves on.
        assert client.post(f"http://127.0.0.1:{server.port}/healthz", content=b"x" * 5000).status_code == 413
    assert get(server, "/healthz").status_code == 200
    with connect(server, b"POST /wake/right HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n") as caller:
        assert b" 413 " in caller.recv(1000)
    assert calls == ["right", "right", "wrong"]


def test_without_a_public_address_there_is_no_wake_up(server: HealthServer) -> None:
    assert httpx.post(f"http://127.0.0.1:{server.port}/wake/right", timeout=60).status_code == 404
