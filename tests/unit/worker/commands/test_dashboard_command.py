"""The command: it says what is missing, where the page is, and what is in its way."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.dashboard import server
from lora_worker.dashboard.board import Board
from tests.commands import check_keys

pytestmark = pytest.mark.usefixtures("environment", "no_logging")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace serving; the list gets what it was called with."""
    calls: list[dict[str, Any]] = []

    async def serve(board: Any, *, ready: Any, **options: Any) -> None:
        calls.append(options)
        ready("http://127.0.0.1:8642/" + ("" if options["token"] else "?token=abc"))

    monkeypatch.setattr(server, "serve", serve)
    return calls


def test_it_listens_on_this_machine_only_unless_told(served: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, ["dashboard"])
    assert done.exit_code == 0
    assert done.stdout == "Open http://127.0.0.1:8642/?token=abc\n"
    assert done.stderr == ""
    assert served == [{"host": "127.0.0.1", "port": 8642, "token": None, "names": ()}]


def test_other_addresses_are_warned_of(served: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, ["dashboard", "--host", "0.0.0.0", "--port", "80", "--allow-name", "box.local"])
    assert "an SSH tunnel to 127.0.0.1 is safer" in done.stderr
    assert served == [{"host": "0.0.0.0", "port": 80, "token": None, "names": ["box.local"]}]


def test_json_has_the_url(served: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, ["dashboard", "--json"])
    check_keys("dashboard", json.loads(done.stdout))
    assert json.loads(done.stdout) == {"url": "http://127.0.0.1:8642/?token=abc"}


def test_token_of_the_settings_is_used_and_not_printed(
    served: list[dict[str, Any]], environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("LORA_WORKER_DASHBOARD_TOKEN", "d" * 40)
    done = CliRunner().invoke(app, ["dashboard"])
    assert served[0]["token"] == "d" * 40
    assert done.stdout == "Open http://127.0.0.1:8642/?token= and the value of LORA_WORKER_DASHBOARD_TOKEN\n"


@pytest.mark.parametrize("token", [None, "d" * 40])
async def test_url_holds_only_a_new_token(token: str | None) -> None:
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        # What Ctrl-C does, before the first request.
        os.kill(os.getpid(), signal.SIGINT)

    await server.serve(Board(None, None, None), host="127.0.0.1", port=0, token=token, names=(), ready=ready)  # type: ignore[arg-type]
    (url,) = urls
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/" + ("" if token else r"\?token=[\w-]{43}"), url)


@pytest.mark.parametrize("token", ["short", "d" * 31, "d" * 40 + "&x=1", "d" * 201, "ä" * 40])
def test_token_that_is_weak_or_no_url_is_refused(environment: pytest.MonkeyPatch, token: str) -> None:
    environment.setenv("LORA_WORKER_DASHBOARD_TOKEN", token)
    done = CliRunner().invoke(app, ["dashboard"])
    assert done.exit_code == 2
    assert "LORA_WORKER_DASHBOARD_TOKEN: must be 32 to 200 letters" in done.stderr
    assert token not in done.stderr


def test_missing_packages_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    done = CliRunner().invoke(app, ["dashboard"])
    assert done.exit_code == 2
    assert done.stderr == (
        "lora-worker: the dashboard needs packages that are not installed (jinja2): "
        "run `pip install '.[dashboard]'` in the project's folder\n"
    )


def test_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["dashboard", "--port", str(port)])
    assert done.exit_code == 1
    assert f"the port {port} of 127.0.0.1 can't be opened (Address already in use)" in done.stderr
