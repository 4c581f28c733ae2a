"""A lasting fault is logged once and counted; an HTML page as an answer never causes a traceback."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import respx
from structlog.testing import capture_logs
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.duties.daemon import Daemon
from lora_worker.duties.duty import Duty, RoundResult
from lora_worker.errors import ServiceUnavailableError
from lora_worker.services import Services
from tests.processes.waiting import PATIENCE_SECONDS
from tests.scripted import assignment

PAGE = "<html><title>a gateway's words</title></html>"


def entries_of(logs: list[Any], event: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] == event]


async def test_outage_is_logged_once_and_with_its_count_at_its_end(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, outcomes = Daemon(services), [ServiceUnavailableError("db", "away")] * 50 + [None]
    done = asyncio.Event()

    async def round_() -> RoundResult:
        outcome = outcomes.pop(0) if outcomes else done.set()
        if outcome:
            raise outcome
        return RoundResult()

    with capture_logs() as logs:
        loop = asyncio.create_task(daemon._rounds.repeat([Duty("renew", 0, round_)]))
        await asyncio.wait_for(done.wait(), PATIENCE_SECONDS)
        daemon.stop()
        await loop
    assert len(entries_of(logs, "service fault")) == 1
    assert [entry["times"] for entry in entries_of(logs, "fault over")] == [50]
    assert daemon.problem == "starting"


async def test_another_error_in_the_same_place_is_logged_too(services: Services) -> None:
    daemon = Daemon(services)
    with capture_logs() as logs:
        for problem in ("away", "away", "read-only", "away"):
            daemon._rounds.failed("claim", ServiceUnavailableError("db", problem))
    assert [entry["problem"] for entry in entries_of(logs, "service fault")] == ["away", "read-only", "away"]


async def test_bug_at_one_run_is_logged_once_with_its_count(services: Services) -> None:
    daemon = Daemon(services)
    services.queue.to_adopt = [assignment("bad")]  # type: ignore[attr-defined]
    services.launcher.broken = {"bad"}  # type: ignore[attr-defined]
    with capture_logs() as logs:
        await daemon.runs.adopt()
        for _ in range(5):
            await daemon.runs.poll()
        daemon.runs.forget(next(iter(daemon.runs.held.values())))
    assert len(entries_of(logs, "work on a run failed")) == 1
    (over,) = entries_of(logs, "fault over")
    assert over["times"] == 5


@pytest.mark.usefixtures("environment", "no_logging")
@pytest.mark.parametrize("command", [["run", "--once"], ["status"], ["status", "--json"]])
@pytest.mark.parametrize("status", [200, 502])
def test_html_answer_ends_a_command_with_one_sentence(command: list[str], status: int) -> None:
    with respx.mock(assert_all_called=False) as api:
        api.route().respond(status, html=PAGE)
        done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert "is not available" in done.output
    assert "words" not in done.output


async def test_html_answer_at_the_start_keeps_the_daemon_waiting(services: Services) -> None:
    daemon = Daemon(services)
    services.queue.failing = ServiceUnavailableError("db", "no answer")  # type: ignore[attr-defined]
    running = asyncio.create_task(daemon.run())
    while services.queue.calls.count("check_schema") < 2:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    assert not running.done()
    services.queue.failing = None  # type: ignore[attr-defined]
    while "claim" not in services.queue.calls:  # type: ignore[attr-defined]
        await asyncio.sleep(0.001)
    daemon.stop()
    await asyncio.wait_for(running, PATIENCE_SECONDS)
