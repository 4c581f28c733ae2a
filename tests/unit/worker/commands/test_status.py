"""The queue on one screen: 80 columns, the job's id first, and whatever users wrote as plain text."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from lora_worker.commands.status import ShownPlace, draw_status
from tests.commands import check_keys, give_services, run_command
from tests.scripted import make_services
from tests.unit.worker.commands.job_data import HOSTILE, OperatorQueue, queue_health

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> OperatorQueue:
    made = OperatorQueue()
    give_services(monkeypatch, make_services(queue=made))
    return made


def on_screen(width: int = 80, **columns: object) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False).print(draw_status(queue_health(**columns)))
    return file.getvalue().splitlines()


def test_status_fits_80_columns_with_the_jobs_id_first() -> None:
    lines = on_screen()
    assert max(map(len, lines)) <= 80
    for heading, job in (("live", "0f5f8e0a"), ("waiting", "0f5f0000"), ("failed", "0f5f0000")):
        (row,) = [number for number, line in enumerate(lines) if line.startswith(f"{heading} ")]
        assert lines[row + 1].startswith(job)
    text = " ".join(" ".join(lines).split())
    for part in ("1 queued (oldest 1 h 06 min) · 1 live · 1 failed in 24 h", "spent today (UTC): $3.50", "draining",
                 "because the budget of this month is used up", "choose a smaller batch", "$12.31",
                 "held: 3 jobs, for org/broken", "2 stray launches", "no GPU is free"):  # fmt: skip
        assert part in text, part


def test_status_prints_nothing_that_acts_on_the_terminal(queue: OperatorQueue) -> None:
    done = run_command("status")
    assert done.exit_code == 0
    assert "[bold red]Zebras[/]" in done.stdout
    assert HOSTILE not in done.stdout
    assert all(character == "\n" or character.isprintable() for character in done.stdout)


def test_status_as_json_has_stable_keys(queue: OperatorQueue) -> None:
    check_keys("status", json.loads(run_command("status", "--json").stdout))


def test_status_shows_every_endpoint_of_a_routing_table() -> None:
    place: ShownPlace = {
        "place": "own", "endpoint": "https://gpu.example.com", "launches": 1, "slots": 2, "without_gpu_seconds": 600.0,
        "passed_over_seconds": 60.0, "problem": "no free GPU",
    }  # fmt: skip
    file = io.StringIO()
    Console(file=file, width=80, markup=False, highlight=False).print(draw_status(queue_health(), [place]))
    text = " ".join(file.getvalue().split())
    for part in ("launches without a GPU endpoint", "1 of 2 10 min", "own (https://gpu.example.com, left out for"):
        assert part in text, text


def test_quiet_queue_is_two_lines() -> None:
    held = {"operator_holds": [], "breakers": [], "endpoint_problems": []}
    lines = on_screen(
        queued=0, oldest_wait_seconds=None, live_runs=0, expired_leases=0, stray_launches=0, failed=[], failed_today=0,
        spent_today=0.0, workers=[], endpoints=[], runs=[], waiting=[], held=held,
    )  # fmt: skip
    assert lines == ["0 queued · 0 live · 0 failed in 24 h", "spent today (UTC): $0.00"]


def test_queue_without_a_worker_says_how_to_start_one() -> None:
    assert "no worker runs: none has run yet; start one with `lora-worker run`" in on_screen(
        no_worker="none has run yet"
    )


def test_long_tables_end_with_a_count() -> None:
    (waiting,) = queue_health()["waiting"]
    lines = on_screen(waiting=[waiting] * 30, queued=500)
    assert sum(line.startswith("0f5f0000") for line in lines) == 21
    assert any(line.startswith("+480 more") for line in lines)
