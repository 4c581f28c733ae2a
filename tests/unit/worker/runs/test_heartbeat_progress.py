"""What a trainer sends with its heartbeat is read with the lease's renewal, and trusted no more than its output."""

from __future__ import annotations

from typing import Any

import pytest

from lora_worker.database.rows import News
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.runs.applying import apply
from lora_worker.runs.outcomes.results import parse_progress
from lora_worker.runs.rows.progress_entries import progress_report
from lora_worker.runs.state.events import Observed, Renewed
from lora_worker.runs.state.held_run import HeldRun
from tests.scripted import START, assignment, make_services


@pytest.fixture
def held() -> HeldRun:
    return HeldRun.take(make_services(), assignment(), asked_at=START)


def reported(held: HeldRun, step: int, **more: Any) -> dict[str, Any]:
    """A progress as a trainer sends it."""
    points = [{"step": step, "epoch": 1, "training_loss": 1.5}]
    return {
        "run_id": held.run_id, "stage": "training", "progress": 40, "current_step": step, "points": points, **more,
    }  # fmt: skip


def renew(held: HeldRun, progress: Any, number: int | None) -> None:
    news = News(run_id=held.assignment.run.id, held=True, progress=progress, progress_number=number)
    apply(held, Renewed(news, START))


def observe(held: HeldRun, output: Any) -> None:
    observation = Observation(LaunchState.RUNNING, output=output)
    apply(held, Observed(observation, held.whereabouts, parse_progress(output, run_id=held.run_id)))


def test_progress_is_known_though_the_launcher_reports_none(held: HeldRun) -> None:
    renew(held, reported(held, 7), 1)
    observe(held, None)
    report = progress_report(held)
    assert report is not None
    assert (report["job"]["current_step"], report["job"]["current_stage"]) == (7, "training")
    assert [point["step"] for point in report["points"]] == [7]


def test_both_ways_of_progress_are_merged_by_step(held: HeldRun) -> None:
    observe(held, reported(held, 9))
    renew(held, reported(held, 7), 1)
    renew(held, reported(held, 12), 2)
    observe(held, reported(held, 11))
    assert held.progress is not None
    assert held.progress.current_step == 12
    assert [point.step for point in held.progress.points] == [7, 9, 11, 12]


def test_each_report_is_asked_for_once(held: HeldRun) -> None:
    assert held.lease.progress_number == 0
    renew(held, reported(held, 7), 3)
    assert held.lease.progress_number == 3
    assert held.news.progress is None, "what was read is not kept a second time"
    renew(held, None, None)
    assert held.lease.progress_number == 3
    assert held.progress is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"stage": "winning"},
        {"run_id": "another", "stage": "training", "progress": 1},
        {"progress": float("inf")},
        {"points": 5},
        [],
        "text",
        None,
    ],
    ids=str,
)
def test_unreadable_progress_changes_nothing_and_is_not_read_again(held: HeldRun, wrong: Any) -> None:
    renew(held, reported(held, 7), 1)
    known = held.progress
    renew(held, {**reported(held, 9), **wrong} if wrong and isinstance(wrong, dict) else wrong, 2)
    assert held.progress == known
    assert held.lease.progress_number == 2
