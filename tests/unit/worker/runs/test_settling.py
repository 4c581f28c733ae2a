"""A run is billed for measured seconds and the endpoint's GPUs, whatever its container reports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from lora_contract.error_codes import ErrorCode, Fault
from lora_contract.protocol import Manifest, Pace, Point, Progress, Result, Stage, Summary, TrainerError
from lora_contract.serving import serving_name
from lora_worker.database.measured import Measured
from lora_worker.datasets.preflight import WAITING_FOR_DATASET
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.runs.outcomes.failures import Failure
from lora_worker.runs.outcomes.results import parse_result
from lora_worker.runs.outcomes.verdicts import _failure_of
from lora_worker.runs.state.events import Ending
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps.settling import _failure, _success, _without_words
from lora_worker.services import Services
from tests.scripted import assignment
from tests.unit.worker.runs.comparisons import APPLICATION, compared, evaluated

A40 = Summary(gpu_type="NVIDIA A40", gpu_count=2, execution_seconds=3600)


def held(services: Services, progress: dict[str, Any] | None) -> HeldRun:
    """A held run of a job that asked for an H100, with its latest progress."""
    holding = HeldRun.take(services, assignment(), asked_at=services.clock())
    if progress is not None:
        run_id = str(holding.assignment.run.id)
        holding.progress = Progress.model_validate(
            {"run_id": run_id, "stage": Stage.TRAINING, "progress": 40, **progress}
        )
    return holding


def failed(holding: HeldRun, summary: Summary) -> dict[str, Any]:
    error = TrainerError(code=ErrorCode.OUT_OF_MEMORY, message="It broke.")
    result = Result(run_id=str(holding.assignment.run.id), status="failed", error=error, summary=summary)
    return _failure(holding, Ending(None, result=result), Failure("out_of_memory", Fault.PERMANENT, "It broke."))


def manifest_of(holding: HeldRun, summary: Summary, **parts: Any) -> Manifest:
    run = holding.assignment.run
    file = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}
    ids = {"job_id": str(run.job_id), "run_id": str(run.id)}
    return Manifest.model_validate({**ids, "files": [file], "summary": summary.model_dump(), **parts})


def succeeded(holding: HeldRun, summary: Summary, **parts: Any) -> dict[str, Any]:
    job = holding.assignment.job
    assert job is not None
    return _success(holding, manifest_of(holding, summary, **parts), job)


GPU_OF_THE_CONTAINER = {"gpu_type": "NVIDIA A40", "gpu_count": 2}


@pytest.mark.parametrize("end", [failed, succeeded])
@pytest.mark.parametrize("progress", [None, {}, GPU_OF_THE_CONTAINER], ids=str)
def test_billed_gpu_is_the_endpoints_and_a_mismatch_is_logged(
    services: Services, end: Any, progress: dict[str, Any] | None
) -> None:
    holding = held(services, progress)
    with capture_logs() as logs:
        outcome = end(holding, A40)
    assert (holding.rate.gpu_type, holding.rate.gpu_count) == ("H100", 1)
    assert not {"gpu_type", "gpu_count", "price_per_hour"} & set(outcome)
    (problem,) = [entry["problem"] for entry in logs if "contradicts" in entry["event"]]
    assert problem == "the trainer found 2 × A40, and 1 × H100 is billed"


@pytest.mark.parametrize("end", [failed, succeeded])
def test_exaggerated_seconds_are_billed_by_the_workers_clocks(services: Services, end: Any) -> None:
    holding = held(services, None)
    holding.measured_seconds = 90.0
    holding.observation = Observation(LaunchState.COMPLETED, execution_seconds=90.0)
    with capture_logs() as logs:
        outcome = end(holding, Summary(execution_seconds=10_000_000))
    assert outcome["gpu_seconds"] == 90
    assert ["claims more seconds" in entry["event"] for entry in logs] == [True]


@pytest.mark.parametrize("end", [failed, succeeded])
def test_containers_seconds_only_fill_a_gap_in_the_measurements(services: Services, end: Any) -> None:
    holding = held(services, None)
    holding.observation = Observation(LaunchState.MISSING)
    holding.news = holding.news.model_copy(update={"used_seconds": 100.0, "posted_seconds_ago": 86_400.0})
    assert end(holding, Summary(execution_seconds=130))["gpu_seconds"] == 130
    assert end(holding, Summary(execution_seconds=10_000_000))["gpu_seconds"] == 100 + services.settings.lost_seconds
    holding.news = holding.news.model_copy(update={"posted_seconds_ago": 120.0})
    assert end(holding, Summary(execution_seconds=10_000_000))["gpu_seconds"] == 120


@pytest.mark.parametrize("end", [failed, succeeded])
def test_what_the_launcher_bills_counts_before_every_clock(services: Services, end: Any) -> None:
    holding = held(services, None)
    holding.measured_seconds = 90.0
    holding.news = holding.news.model_copy(update={"used_seconds": 100.0, "posted_seconds_ago": 120.0})
    holding.observation = Observation(LaunchState.COMPLETED, execution_seconds=90.0, billed_seconds=27.0)
    assert end(holding, Summary(execution_seconds=10_000_000))["gpu_seconds"] == 27


def test_only_a_success_brings_the_pace_from_which_estimates_learn(services: Services) -> None:
    pace = {"tokens": 9_000_000, "seconds": 1000.0, "steps": 300}
    summary = Summary(pace=Pace(**pace))
    assert succeeded(held(services, None), summary)["pace"] == pace
    assert succeeded(held(services, None), Summary())["pace"] is None, "an earlier trainer sends none"
    assert "pace" not in failed(held(services, None), summary)


def test_success_brings_what_was_compared_into_row_figures_and_message(services: Services) -> None:
    holding = held(services, None)
    name = serving_name(holding.assignment.run.job_id)
    told = {"evaluation": evaluated(compared()).model_dump(), "application": APPLICATION}
    outcome = succeeded(holding, Summary(method="sft"), **told, serving={"name": name, "folder": "/runpod-volume"})
    assert outcome["measured"] == Measured.model_validate({**told, "serving_name": name, "method": "sft"}).model_dump(
        mode="json"
    )
    assert outcome["artifact"]["training_summary"]["serving_name"] == name
    assert outcome["artifact"]["quality_metrics"]["overall_score"] == 5
    figures = {figure["id"]: figure["value"] for figure in outcome["figures"]}
    assert figures.items() <= outcome["artifact"]["quality_metrics"].items()
    assert figures["held_out_gain"] == 0.69
    (message,) = [notice["message"] for notice in outcome["notices"] if notice["type"] == "job_completed"]
    assert "the loss fell from 2.31 to 1.62" in message
    json.dumps(outcome, allow_nan=False, default=str)


@pytest.mark.parametrize("name", ["adapter-ffffffff", "adapter-" + "x" * 5_000, "../lora", 7])
def test_name_that_is_not_its_own_jobs_is_left_out(services: Services, name: object) -> None:
    outcome = succeeded(held(services, None), Summary(), serving={"name": name, "folder": "/"})
    assert outcome["measured"]["serving_name"] is outcome["artifact"]["training_summary"]["serving_name"] is None


def test_numbers_that_no_json_has_leave_the_rest_of_a_manifest(services: Services) -> None:
    holding = held(services, None)
    told = manifest_of(holding, Summary()).model_dump(mode="json") | {
        "evaluation": {"held_out": None, "general_change_percent": float("-inf")}, "application": APPLICATION,
        "serving": {"name": "../" + "x" * 100_000, "folder": "/"},
    }  # fmt: skip
    job = holding.assignment.job
    assert job is not None
    outcome = _success(holding, Manifest.model_validate_json(json.dumps(told)), job)
    measured = outcome["measured"]
    assert (measured["evaluation"], measured["serving_name"], measured["application"]["modules"]) == (None, None, 84)
    json.dumps(outcome, allow_nan=False, default=str)


def test_success_of_an_earlier_trainer_is_rated_and_told_as_before(services: Services) -> None:
    outcome = succeeded(held(services, None), Summary())
    # No points: the application's rule knows no better.
    (score,) = outcome["figures"]
    assert (score["id"], score["value"], score["raw"]) == ("overall_score", 3, {"convergence_quality": "unknown"})
    assert outcome["measured"] == Measured().model_dump()
    assert outcome["artifact"]["quality_metrics"].keys() == {
        "overall_score", "convergence_quality", "final_training_loss", "final_validation_loss", "perplexity",
        "loss_reduction_percent",
    }  # fmt: skip
    # What is written where a container's words can't be stored.
    bare = _without_words(manifest_of(held(services, None), Summary(), evaluation=evaluated(compared()).model_dump()))
    assert bare.evaluation is None


def test_name_of_a_served_adapter_stays_where_words_are_refused(services: Services) -> None:
    holding = held(services, None)
    job = holding.assignment.job
    assert job is not None
    serving = {"name": serving_name(job.id), "folder": "lora-adapters"}
    outcome = _success(holding, _without_words(manifest_of(holding, Summary(), serving=serving)), job)
    assert outcome["measured"]["serving_name"] == serving["name"]


def test_displayed_cost_stays_within_the_cap(services: Services) -> None:
    holding = held(services, None)
    holding.measured_seconds = 10_000_000.0
    assert holding.cost(holding.gpu_seconds()) == services.settings.max_cost_per_job
    (notice,) = failed(holding, Summary())["notices_if_cancelled"]
    assert "$100.00" in notice["message"]


def test_run_is_billed_at_the_rate_of_its_launch(services: Services) -> None:
    launched_with = {"dataset_id": None, "gpu_type": "L4", "gpu_count": 2, "price_per_hour": 0.5, "max_cost": 7}
    holding = HeldRun.take(services, assignment(launched_with=launched_with), asked_at=services.clock())
    assert (holding.rate.gpu_type, holding.rate.gpu_count, holding.cost(3600)) == ("L4", 2, 1.0)
    assert holding.cost(10**9) == 7


def test_failed_run_with_a_late_gpu_name_keeps_its_curve(services: Services) -> None:
    points = [Point(step=1, epoch=1, training_loss=2.0, learning_rate=1e-4)]
    outcome = failed(held(services, {"points": points, "total_steps": 10}), A40)
    assert [point["step"] for point in outcome["points"]] == [1]


def test_adapter_refused_by_storage_waits_without_using_an_attempt(services: Services) -> None:
    holding = held(services, None)
    refused = TrainerError(code=ErrorCode.STORAGE_REFUSED, message="Too large.", too_many_bytes=3 * 10**9)
    result = Result(run_id=str(holding.assignment.run.id), status="unpublished", error=refused)
    parsed = parse_result(result.as_output(), run_id=result.run_id)
    assert isinstance(parsed, Result)
    assert parsed.error == refused
    outcome = _failure(holding, Ending(None, result=parsed), _failure_of(parsed))
    assert (outcome["job_status"], outcome["waiting_stage"]) == ("queued", "waiting_for_storage")
    assert outcome["fault"] == "infrastructure"


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 60), (2, 120), (6, 1800), (10**6, 1800)])
def test_run_launched_before_its_dataset_is_requeued_uncounted(
    services: Services, attempt: int, seconds: float
) -> None:
    holding = HeldRun.take(services, assignment(None, attempt=attempt), asked_at=services.clock())
    failure = Failure(WAITING_FOR_DATASET, Fault.INFRASTRUCTURE, "The dataset is not validated yet.")
    outcome = _failure(holding, Ending(failure), failure)
    assert (outcome["job_status"], outcome["fault"], outcome["notices"]) == ("queued", None, [])
    assert (outcome["waiting_stage"], outcome["retry_after_seconds"]) == ("waiting_for_dataset", seconds)
