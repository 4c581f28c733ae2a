"""Messages of a container are read within bounds whatever it sends, and its run is settled."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from lora_contract.bounds import MOST_STEPS, spread
from lora_contract.protocol import (
    MAX_FILES,
    MAX_POINTS,
    FinalMetrics,
    Manifest,
    Pace,
    Point,
    Progress,
    Result,
    Stage,
    Summary,
    TrainerError,
)
from lora_worker.database.caller import storable_json
from lora_worker.errors import ServiceRefusedError, ServiceUnavailableError, ValueRefusedError
from lora_worker.runs.outcomes.failures import CANCELLED_ELSEWHERE
from lora_worker.runs.outcomes.results import parse_progress, parse_result
from lora_worker.runs.rows.report_rows import point_rows, progress_columns
from lora_worker.runs.state.events import Ending, Settled
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps import settling
from tests.scripted import FakeQueue, Shelf, assignment, make_services

ENDLESS = ["Infinity", "-Infinity", "NaN", float("inf"), float("nan"), -1, 3_000_000_000, 1e300, 1e30, "9" * 5000,
           10**400, True, [], {}, "many", None]  # fmt: skip
FILE = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}


def manifest(**parts: Any) -> Any:
    return {"job_id": "j", "run_id": "r", "files": [FILE], **parts}


@pytest.mark.parametrize("value", ENDLESS, ids=lambda value: repr(value)[:20])
def test_summary_numbers_out_of_bounds_become_unknown(value: Any) -> None:
    numbers = [name for name, field in Summary.model_fields.items() if "str" not in str(field.annotation)]
    numbers.remove("pace")
    assert len(numbers) == 11
    said = {**dict.fromkeys(numbers, value), "pace": dict.fromkeys(Pace.model_fields, value)}
    summary = Manifest.model_validate(manifest(summary=said)).summary
    assert Manifest.model_validate(manifest(summary={"pace": value})).summary.pace in (None, Pace())
    assert summary.pace is not None
    for name, found in [*((name, getattr(summary, name)) for name in numbers), *summary.pace]:
        assert found is None or 0 <= found <= 2**53, name


@pytest.mark.parametrize("value", ENDLESS, ids=lambda value: repr(value)[:20])
def test_metrics_that_are_not_finite_become_unknown(value: Any) -> None:
    metrics = FinalMetrics.model_validate(dict.fromkeys(FinalMetrics.model_fields, value))
    progress = Progress.model_validate(
        {"run_id": "r", "stage": "training", "progress": 30, "metrics": {"training_loss": value},
         "eta_seconds": value, "current_step": value, "current_epoch": value, "total_steps": value}
    )  # fmt: skip
    for found in (*metrics.model_dump().values(), *progress.metrics.values()):
        assert found is None or math.isfinite(found)
    columns = progress_columns(progress, total_epochs=3, cost=0.0, now=datetime.now(UTC))
    assert json.dumps(columns, allow_nan=False)
    assert 0 <= columns["current_step"] <= MOST_STEPS


@pytest.mark.parametrize("value", ENDLESS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("key", sorted(set(Point.model_fields) - {"training_loss"}))
def test_impossible_value_drops_only_its_own_point(key: str, value: Any) -> None:
    good = [{"step": step, "epoch": 1, "training_loss": 2.0} for step in (1, 2)]
    read = Manifest.model_validate(manifest(points=[*good, {**good[1], "step": 3, key: value}])).points
    assert [point.step for point in read][:2] == [1, 2]
    assert json.dumps(point_rows(read, total_steps=3, limit=100), allow_nan=False)


def test_lists_and_texts_of_a_trainer_are_bounded() -> None:
    points = [{"step": step, "epoch": 1, "training_loss": 2.0} for step in range(MAX_POINTS * 2)]
    summary = {"notes": ["n" * 10_000] * 1000, "base_model": "b" * 10_000}
    read = Manifest.model_validate(manifest(points=points, summary=summary))
    assert len(read.points) <= MAX_POINTS
    assert (read.points[0].step, read.points[-1].step) == (0, MAX_POINTS * 2 - 1)
    assert (len(read.summary.notes), len(read.summary.notes[0])) == (50, 1000)
    assert len(read.summary.base_model or "") == 400
    metrics = {f"{'k' * 200}{number}": 1.0 for number in range(1000)}
    progress = Progress.model_validate({"run_id": "r", "stage": "training", "progress": 1, "metrics": metrics})
    assert len(progress.metrics) <= 50
    assert len(TrainerError(code="internal", message="m" * 10_000, hint="h" * 10_000).sentence()) <= 4001


def test_manifest_with_too_many_files_is_refused() -> None:
    assert Manifest.model_validate(manifest(files=[FILE] * MAX_FILES))
    with pytest.raises(ValueError, match="at most 200"):
        Manifest.model_validate(manifest(files=[FILE] * (MAX_FILES + 1)))


def test_spread_keeps_first_and_last_within_its_limit() -> None:
    for count in (0, 1, 2, 3, 99, 100, 101, 1000, 4999):
        for most in (2, 3, 10, 100):
            kept = spread(list(range(count)), most)
            assert len(kept) <= most
            assert kept == sorted(set(kept))
            assert not count or (kept[0], kept[-1]) == (0, count - 1)


def test_deeply_nested_output_is_not_used_as_a_message() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    output = {"run_id": "r", "stage": "training", "progress": 1, "points": deep, "metrics": {"a": deep}}
    progress = parse_progress(output, run_id="r")
    assert progress is None or progress.points == []
    assert parse_result({"run_id": "r", "status": "completed", "manifest": deep}, run_id="r") is None


def test_values_sent_to_the_database_contain_no_nan() -> None:
    assert storable_json({"a": [float("nan"), float("inf"), 1.5]}) == {"a": [None, None, 1.5]}


# ── settling ────────────────────────────────────────────────────────────────────────────────────────


class Writable(Shelf):
    """A storage to which a log can be written."""

    async def write(self, bucket: str, path: str, content: bytes, *, content_type: str) -> None:
        assert content


class Picky(FakeQueue):
    """A database that refuses the first outcomes."""

    def __init__(self, refusals: int, error: Exception | None = None) -> None:
        super().__init__()
        self.outcomes: list[dict[str, Any]] = []
        self._refusals = refusals
        self._error = error or ValueRefusedError("Supabase's database", "can't hold it (22003)", status=400)

    async def settle(self, run_id: Any, lease_token: Any, outcome: dict[str, Any]) -> Settled:
        self.outcomes.append(outcome)
        if len(self.outcomes) <= self._refusals:
            raise self._error
        return str(outcome["job_status"])


def ended(queue: Picky, **parts: Any) -> HeldRun:
    services = make_services(queue=queue, storage=Writable(False))
    holding = HeldRun.take(services, assignment(), asked_at=services.clock())
    points = [Point(step=1, epoch=1, training_loss=2.0)]
    holding.progress = Progress(run_id=str(holding.assignment.run.id), stage=Stage.TRAINING, progress=40, points=points)
    return holding


def successful(holding: HeldRun) -> Manifest:
    run = holding.assignment.run
    return Manifest.model_validate(
        manifest(job_id=str(run.job_id), run_id=str(run.id), summary={"total_steps": 5, "notes": ["n"]},
                 points=[{"step": 5, "epoch": 1, "training_loss": 1.0}])
    )  # fmt: skip


async def test_refused_outcome_is_settled_without_the_trainers_values() -> None:
    queue = Picky(1)
    holding = ended(queue)
    assert (await settling.close_run(holding, Ending(None), successful(holding))).job_status == "completed"
    assert [point["step"] for point in queue.outcomes[0]["points"]] == [5]
    assert queue.outcomes[1]["points"] == []
    assert queue.outcomes[1]["artifact"]["training_summary"]["notes"] == []


async def test_outcome_refused_twice_fails_the_job_with_a_sentence() -> None:
    queue = Picky(2)
    holding = ended(queue)
    assert (await settling.close_run(holding, Ending(None), successful(holding))).job_status == "failed"
    last = queue.outcomes[-1]
    assert last["error_message"].startswith("The training ended with a result that can't be stored.")
    assert [notice["type"] for notice in last["notices"]] == ["job_failed"]


async def test_outcome_that_cannot_be_built_still_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> Any:
        raise OverflowError("timestamp out of range")

    monkeypatch.setattr(settling, "point_rows", explode)
    queue = Picky(0)
    holding = ended(queue)
    assert (await settling.close_run(holding, Ending(CANCELLED_ELSEWHERE), None)).job_status == "failed"
    assert queue.outcomes[-1]["error_code"] == "result_refused"


@pytest.mark.parametrize(
    "error",
    [
        ServiceUnavailableError("Supabase's database", "away"),
        ServiceRefusedError("Supabase's database", "refused the key", status=401),
        ServiceRefusedError("Supabase's database", "an application's trigger says no (P0001)", status=400),
    ],
    ids=str,
)
async def test_refusal_for_another_reason_does_not_fail_the_job(error: Exception) -> None:
    queue = Picky(1, error)
    holding = ended(queue)
    with pytest.raises(type(error)):
        await settling.close_run(holding, Ending(None), successful(holding))
    assert len(queue.outcomes) == 1


def test_partly_invalid_result_keeps_its_valid_values() -> None:
    output = {
        "run_id": "r", "status": "completed",
        "summary": {"execution_seconds": "Infinity", "total_steps": 3e9, "epochs_completed": 1e300,
                    "train_seconds": "NaN"},
        "points": [{"step": 1, "epoch": 1, "timestamp": 1e30}],
    }  # fmt: skip
    result = parse_result(output, run_id="r")
    assert isinstance(result, Result)
    assert result.summary == Summary()
    assert result.points == [Point(step=1, epoch=1)]
