"""`watch` ends with the job, tells changes only, and draws a picture that fits any terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from rich.console import Console

from lora_worker.commands import watching
from lora_worker.commands.live_views import draw_job
from lora_worker.database.job_reports import JobDetails
from tests.commands import check_keys, give_services, run_command
from tests.scripted import make_services
from tests.unit.worker.commands.job_data import HOSTILE, JOB, SHOWN, OperatorQueue, completed_details, details

pytestmark = pytest.mark.usefixtures("environment")

NOW = datetime(2026, 11, 26, 12, 12, tzinfo=UTC)


def course(end: str = "completed") -> list[JobDetails]:
    """A job from the queue to its end, with a look at which nothing has changed."""
    failed = {"error_code": "out_of_memory", "error_message": HOSTILE} if end == "failed" else {}
    return [
        details(status="queued", stage="queued", waits_for="a free worker slot", progress=0, steps=0),
        details(status="running", stage="training", progress=30.0, steps=10),
        details(status="running", stage="training", progress=30.0, steps=10),
        details(status="running", stage="training", progress=34.0, steps=14),
        details(status=end, stage=end, progress=100.0, final_cost=0.44, **failed),
    ]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[JobDetails]], OperatorQueue]:
    monkeypatch.setattr(watching, "POLL_SECONDS", 0)

    def watch(states: list[JobDetails]) -> OperatorQueue:
        queue = OperatorQueue(*states)
        give_services(monkeypatch, make_services(queue=queue))
        return queue

    return watch


def test_watch_in_a_pipe_tells_each_change_on_a_line(watched: Callable[[list[JobDetails]], OperatorQueue]) -> None:
    watched(course())
    done = run_command("watch", "0f5f8")
    assert done.exit_code == 0
    waits, trains, ends = done.stdout.splitlines()
    assert waits == "0f5f8e0a · queued · loss 0.575 · $0.31 · waits for a free worker slot"
    assert trains == "0f5f8e0a · running · training · 30 % · step 40/80 · loss 0.575 · $0.31"
    assert ends == "0f5f8e0a · completed · loss 0.575 · $0.44"


def test_watch_ends_with_what_got_better_and_the_name_to_call(
    watched: Callable[[list[JobDetails]], OperatorQueue],
) -> None:
    watched([*course()[:-1], completed_details()])
    end = run_command("watch", str(JOB)).stdout.splitlines()[-1]
    assert "On 34 held-out conversations the loss fell from 2.31 to 1.62 (95 % interval" in end
    assert end.endswith(" · call it adapter-0f5f8e0a")
    watched([completed_details()])
    (change,) = map(json.loads, run_command("watch", str(JOB), "--json").stdout.splitlines())
    assert change["improvement"].startswith("On 34 held-out conversations")
    assert change["serving_name"] == "adapter-0f5f8e0a"
    file = io.StringIO()
    Console(file=file, width=80).print(draw_job(completed_details(), now=NOW, width=80))
    assert "call it adapter-0f5f8e0a" in file.getvalue()


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_watch_of_a_job_that_does_not_complete_exits_with_3(
    watched: Callable[[list[JobDetails]], OperatorQueue], end: str
) -> None:
    watched(course(end))
    done = run_command("watch", str(JOB))
    assert done.exit_code == 3
    if end == "failed":
        assert f"out_of_memory: {SHOWN}" in done.stdout
    assert "\x1b" not in done.stdout


def test_watch_as_json_has_an_object_for_each_change(watched: Callable[[list[JobDetails]], OperatorQueue]) -> None:
    watched(course())
    done = run_command("watch", str(JOB), "--json")
    changes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [change["progress"] for change in changes] == [0.0, 30.0, 34.0, 100.0]
    for change in changes:
        check_keys("watch", change)


def test_watch_of_the_queue_goes_on_until_it_is_interrupted(
    watched: Callable[[list[JobDetails]], OperatorQueue],
) -> None:
    for arguments in ([], ["--json"]):
        queue = watched([])
        queue.most_looks = 3
        done = run_command("watch", *arguments)
        assert done.exit_code == 1
        assert done.stderr == "lora-worker: the test has seen enough\n"
        (line,) = done.stdout.splitlines()
        if arguments:
            check_keys("watch queue", json.loads(line))
        else:
            assert line == "1 queued · 1 live · 1 failed in 24 h · $3.50 today"


def test_interrupted_watch_exits_with_130_and_without_a_traceback(
    watched: Callable[[list[JobDetails]], OperatorQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = watched(course())

    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "health", interrupted)
    monkeypatch.setattr(queue, "training_job_details", interrupted)
    for arguments in ((), (str(JOB),)):
        done = run_command("watch", *arguments)
        assert (done.exit_code, done.stderr) == (130, "")


# ── the picture ─────────────────────────────────────────────────────────────────────────────────────


def picture(told: JobDetails, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False).print(draw_job(told, now=NOW, width=width))
    return file.getvalue().replace("\u00a0", " ")


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_picture_fits_the_terminal(width: int) -> None:
    for told in course("failed"):
        assert max(map(len, picture(told, width).splitlines())) <= width


def test_picture_shows_stages_progress_curve_and_cost() -> None:
    drawn = picture(details())
    for part in ("cold start 1 min 01 s", "training 10 min 10 s", "62 %", "step 40/80", "cost $0.31",
                 "ends in 8 min 00 s", "tokens/s 2,100", "loss 0.575", "3.5", "running"):  # fmt: skip
        assert part in drawn, part
    # The curve falls: its first column begins in the first line, its last one is in the last.
    curve = [line for line in drawn.splitlines() if any("\u2800" < character <= "\u28ff" for character in line)]
    assert len(curve) == 8
    assert curve[0].strip("│ ").startswith("3.5 ⢸") or curve[0].strip("│ ").startswith("3.5 ⡇")
    assert HOSTILE not in drawn
    assert "\x1b" not in drawn


def test_picture_of_a_terminal_is_drawn_at_each_look(
    watched: Callable[[list[JobDetails]], OperatorQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(course())
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, markup=False, highlight=False)
    monkeypatch.setattr(watching, "make_console", lambda: console)
    done = run_command("watch", str(JOB))
    assert done.exit_code == 0
    assert "waits for a free worker slot" in screen.getvalue()
    assert "$0.44" in screen.getvalue()
    # The job's own escape sequences stay text.
    assert "\x1b]0;owned" not in screen.getvalue()
    assert "\x1b[2J\x1b]" not in screen.getvalue()
