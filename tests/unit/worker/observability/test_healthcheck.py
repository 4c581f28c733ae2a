"""The check of a container's health, with and without a port; it must fail where the worker hangs or is gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from lora_worker.errors import PortTakenError
from lora_worker.observability import healthcheck
from lora_worker.observability.health import HealthServer
from lora_worker.observability.healthcheck import check_health
from tests.commands import check_keys

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sockets with abstract names")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other workers of this machine, such as those of tests that run at the same time, are not found."""
    monkeypatch.setattr(healthcheck, "SOCKET_PREFIX", f"lora-worker-test-{uuid4().hex}-")


@contextmanager
def worker(port: int | None, alive: str | None = None, host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    server = HealthServer(host, port, alive=lambda: alive, ready=lambda: "it is not ready, which does not matter")
    try:
        yield {"LORA_WORKER_HTTP_PORT": str(server.port or 0), "LORA_WORKER_HTTP_HOST": host}
    finally:
        server.stop()


@pytest.mark.parametrize("port", [0, pytest.param(None, marks=linux_only)], ids=["by port", "by socket"])
def test_worker_that_is_alive_is_healthy_and_one_that_hangs_is_not(port: int | None) -> None:
    with worker(port) as environment:
        assert check_health(environment).problem is None
    with worker(port, alive="the duty poll hangs") as environment:
        assert check_health(environment).problem == "The worker is not alive: the duty poll hangs."
    assert check_health(environment).problem is not None, "it has ended"


def test_worker_that_listens_everywhere_is_asked_on_this_machine() -> None:
    with worker(0, host="0.0.0.0") as environment:
        assert check_health(environment).problem is None


@linux_only
def test_second_worker_of_a_machine_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with worker(None):
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with worker(None, alive="it hangs") as environment:
            assert "it hangs" in (check_health(environment).problem or "")
        with worker(None) as environment:
            assert check_health(environment).problem is None


@linux_only
def test_name_that_is_taken_is_refused_with_a_sentence() -> None:
    with worker(None), pytest.raises(PortTakenError, match="set LORA_WORKER_HTTP_PORT"):
        HealthServer("", None, alive=lambda: None, ready=lambda: None)


def test_other_program_at_the_port_is_not_taken_for_the_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        environment = {"LORA_WORKER_HTTP_PORT": str(other.getsockname()[1])}
        asking = subprocess.Popen(
            [sys.executable, "-m", "lora_worker.commands.cli", "healthcheck", "--json"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        connection, _ = other.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")
        output, _ = asking.communicate()
    assert asking.returncode == 1
    check_keys("healthcheck", json.loads(output))
    assert json.loads(output) == {"ok": False, "problem": "Something else than the worker answers at its port."}


def test_worker_that_accepts_and_never_answers_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        problem = check_health({"LORA_WORKER_HTTP_PORT": str(silent.getsockname()[1])}).problem
    assert problem == "The worker does not answer (TimeoutError)."


def test_port_that_is_no_number_is_named() -> None:
    assert "LORA_WORKER_HTTP_PORT" in (check_health({"LORA_WORKER_HTTP_PORT": "http"}).problem or "")


def test_check_loads_nothing_heavy() -> None:
    """It runs beside the worker, on a machine of 256 MB."""
    code = (
        "import sys; sys.argv = ['lora-worker', 'healthcheck']; from lora_worker.commands.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, *({'httpx', 'supabase', 'rich'} & set(sys.modules)))"
    )
    environment = {**os.environ, "LORA_WORKER_HTTP_PORT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "lora-worker: The worker does not answer (Connection refused).\n")
