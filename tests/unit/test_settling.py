"""What a run is billed for: the GPU that was there, also where no poll saw it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripted import assignment
from trainer.protocol import ErrorCode, Fault, Manifest, Point, Progress, Result, Stage, Summary, TrainerError
from worker.holding import Holding
from worker.outcome import Failure, _failure_of, parse_result
from worker.services import Services
from worker.settling import Ending, _failure, _success

A40 = Summary(gpu_type="NVIDIA A40", gpu_count=2, execution_seconds=3600)


def held(services: Services, progress: dict[str, Any] | None) -> Holding:
    """A run of a job that asked for an H100, and what was last heard of its progress."""
    holding = Holding.take(services, assignment(), asked_at=services.clock())
    if progress is not None:
        run_id = str(holding.assignment.run.id)
        holding.progress = Progress.model_validate(
            {"run_id": run_id, "stage": Stage.TRAINING, "progress": 40, **progress}
        )
    return holding


def failed(holding: Holding, summary: Summary) -> dict[str, Any]:
    error = TrainerError(code=ErrorCode.OUT_OF_MEMORY, message="It broke.")
    result = Result(run_id=str(holding.assignment.run.id), status="failed", error=error, summary=summary)
    return _failure(holding, Ending(None, result=result), Failure("out_of_memory", Fault.PERMANENT, "It broke."))


def succeeded(holding: Holding, summary: Summary) -> dict[str, Any]:
    run, job = holding.assignment.run, holding.assignment.job
    assert job is not None
    file = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}
    manifest = Manifest.model_validate(
        {"job_id": str(job.id), "run_id": str(run.id), "files": [file], "summary": summary.model_dump()}
    )
    return _success(holding, manifest, job)


@pytest.mark.parametrize("end", [failed, succeeded])
@pytest.mark.parametrize("progress", [None, {}, {"current_step": 3}], ids=str)
def test_a_run_whose_gpu_no_poll_saw_is_billed_for_what_its_result_names(
    services: Services, end: Any, progress: dict[str, Any] | None
) -> None:
    outcome = end(held(services, progress), A40)
    assert (outcome["gpu_type"], outcome["gpu_count"], outcome["gpu_seconds"]) == ("A40", 2, 3600)


@pytest.mark.parametrize("end", [failed, succeeded])
def test_a_gpu_that_was_seen_stays_the_one_that_is_billed(services: Services, end: Any) -> None:
    outcome = end(held(services, {"gpu_type": "NVIDIA L4", "gpu_count": 1}), A40)
    assert (outcome["gpu_type"], outcome["gpu_count"]) == ("L4", 1)


@pytest.mark.parametrize("end", [failed, succeeded])
def test_a_run_whose_gpu_nobody_names_is_billed_for_the_one_asked_for(services: Services, end: Any) -> None:
    assert end(held(services, None), Summary())["gpu_type"] == "H100"


def test_naming_the_gpu_late_keeps_the_curve(services: Services) -> None:
    points = [Point(step=1, epoch=1, training_loss=2.0, learning_rate=1e-4)]
    outcome = failed(held(services, {"points": points, "total_steps": 10}), A40)
    assert [point["step"] for point in outcome["points"]] == [1]


def test_an_adapter_that_the_storage_refused_waits_for_it_and_is_no_attempt_of_its_user(services: Services) -> None:
    holding = held(services, None)
    refused = TrainerError(code=ErrorCode.STORAGE_REFUSED, message="Too large.", too_many_bytes=3 * 10**9)
    result = Result(run_id=str(holding.assignment.run.id), status="unpublished", error=refused)
    parsed = parse_result(result.as_output(), run_id=result.run_id)
    assert isinstance(parsed, Result)
    assert parsed.error == refused
    outcome = _failure(holding, Ending(None, result=parsed), _failure_of(parsed))
    assert (outcome["job_status"], outcome["waiting_stage"]) == ("queued", "waiting_for_storage")
    assert outcome["fault"] == "infrastructure"
