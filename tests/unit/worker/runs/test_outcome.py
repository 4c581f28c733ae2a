"""Each row of the table in `lora_worker.runs.outcomes.verdicts`, and the retries that follow."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lora_contract.error_codes import FAULTS, ErrorCode, Fault
from lora_contract.protocol import FinalMetrics, Point
from lora_worker.configuration.retry_limits import RetryLimits
from lora_worker.launchers.base import EndCause, LaunchState, Observation
from lora_worker.runs.outcomes.failures import OVER_TIME, Failure
from lora_worker.runs.outcomes.results import LegacyResult, parse_progress
from lora_worker.runs.outcomes.retries import exhausted, retry_after
from lora_worker.runs.outcomes.verdicts import AwaitManifest, Finish, Keep, Stop, Verdict, judge
from lora_worker.runs.rows.quality import perplexity_of, rate_run, rate_training

RUN = "run-1"
TODAYS_FAILURE = {"status": "failed", "error_message": "No.\nTraceback"}


def look(
    state: str,
    output: Any = None,
    cause: EndCause = EndCause.UNKNOWN,
    *,
    elsewhere: bool = False,
    silent: float = 0,
    checked_in: bool = True,
) -> Verdict:
    observation = Observation(LaunchState(state), output=output, cause=cause)
    return judge(
        observation,
        run_id=RUN,
        owned_elsewhere=elsewhere,
        checked_in=checked_in,
        silent_seconds=silent,
        lost_seconds=60,
        longest_seconds=3600,
    )


def result(status: str, code: str | None = None, run_id: str = RUN) -> dict[str, Any]:
    error = {"code": code, "message": "It broke.", "hint": "Mend it."} if code else None
    return {"run_id": run_id, "status": status, "error": error}


@pytest.mark.parametrize("state", ["queued", "running", "unknown"])
def test_run_that_has_not_ended_is_kept(state: str) -> None:
    assert isinstance(look(state), Keep)


@pytest.mark.parametrize(
    ("ends_by_itself", "silent", "kept"), [(True, 119, True), (True, 120, False), (False, 0, False)]
)
def test_machine_that_ends_by_itself_is_awaited_for_its_bill(ends_by_itself: bool, silent: float, kept: bool) -> None:
    seen = Observation(LaunchState.RUNNING, output=result("completed"), ends_by_itself=ends_by_itself, is_reported=True)
    verdict = judge(
        seen, run_id=RUN, owned_elsewhere=False, checked_in=True, silent_seconds=silent, lost_seconds=60,
        longest_seconds=3600,
    )  # fmt: skip
    assert isinstance(verdict, Keep if kept else Finish)


def test_forgotten_job_is_kept_while_its_manifest_may_still_come() -> None:
    assert isinstance(look("missing", silent=59), AwaitManifest)


def test_silent_running_job_is_stopped() -> None:
    assert look("running", silent=61) == Stop(
        Failure("gpu_silent", Fault.INFRASTRUCTURE, "The GPU machine was not heard of any more, so it was stopped.")
    )


def test_trainer_without_check_in_may_be_silent_for_a_whole_run() -> None:
    assert isinstance(look("running", silent=3599, checked_in=False), Keep)
    assert look("running", silent=3600, checked_in=False) == Stop(OVER_TIME)


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        ("No.\nTraceback", "No."),
        ("GET https://p.supabase.co/storage/v1/o?token=abc failed", "GET [address] failed"),
        ("key sb_secret_abc refused", "key [secret] refused"),
        (f"token {'eyJhbGciOiJIUzI1NiJ9.e30.abc'} expired", "token [secret] expired"),
        ("401 for hf_abcdefghijklmnopqrstuvwxyz", "401 for [secret]"),
        ("connect postgresql://u:pw@h/db", "connect [address]"),
        ("Traceback (most recent call last):\n  File x\nRuntimeError: CUDA error", "RuntimeError: CUDA error"),
        ("", "The training program ended unexpectedly."),
        ({"odd": 1}, "{'odd': 1}"),
    ],
)
def test_earlier_trainers_errors_are_stored_redacted(message: Any, stored: str) -> None:
    verdict = look("completed", {"status": "failed", "error_message": message})
    assert isinstance(verdict, Finish)
    assert verdict.failure.message == stored


def test_waiting_for_a_gpu_is_never_a_failure() -> None:
    assert isinstance(look("queued", silent=10**9), Keep)


def test_unknown_state_is_never_a_failure() -> None:
    assert isinstance(look("unknown", silent=10**9), Keep)


@pytest.mark.parametrize(
    ("verdict", "code", "fault"),
    [
        (look("completed", result("completed")), "artifact_missing", Fault.TRANSIENT),
        (look("completed", result("failed", "dataset_invalid")), "dataset_invalid", Fault.PERMANENT),
        (look("completed", result("unpublished")), "grant_missing", Fault.INFRASTRUCTURE),
        (look("completed", result("superseded"), silent=61), "superseded", Fault.INFRASTRUCTURE),
        (look("completed"), "result_unreadable", Fault.TRANSIENT),
        (look("completed", "text"), "result_unreadable", Fault.TRANSIENT),
        (look("completed", result("completed", run_id="another")), "result_unreadable", Fault.TRANSIENT),
        (look("completed", TODAYS_FAILURE), "training_failed", Fault.PERMANENT),
        (look("failed", result("failed", "interrupted")), "interrupted", Fault.INFRASTRUCTURE),
        (look("failed", cause=EndCause.OVER_TIME), "time_limit", Fault.PERMANENT),
        (look("failed", cause=EndCause.LOST), "gpu_lost", Fault.INFRASTRUCTURE),
        (look("failed", cause=EndCause.OUT_OF_MEMORY), "out_of_memory", Fault.PERMANENT),
        (look("failed", cause=EndCause.RAISED), "trainer_crashed", Fault.TRANSIENT),
        (look("failed", cause=EndCause.IMPORT_FAILED), "trainer_crashed", Fault.TRANSIENT),
        (look("failed"), "trainer_crashed", Fault.TRANSIENT),
        (look("cancelled"), "cancelled_at_launcher", Fault.PERMANENT),
        (look("timed_out"), "gpu_timed_out", Fault.INFRASTRUCTURE),
        (look("missing", silent=60), "gpu_lost", Fault.INFRASTRUCTURE),
    ],
)  # fmt: skip
def test_every_end_has_a_reason_and_a_culprit(verdict: Verdict, code: str, fault: Fault) -> None:
    assert isinstance(verdict, Finish)
    assert (verdict.failure.code, verdict.failure.fault) == (code, fault)
    assert "Traceback" not in verdict.failure.message
    assert verdict.failure.message.endswith(".")


def test_superseded_launch_changes_nothing_while_another_trains() -> None:
    assert isinstance(look("completed", result("superseded"), elsewhere=True), Keep)


def test_a_superseded_execution_waits_for_the_manifest_of_the_newer_one() -> None:
    assert isinstance(look("completed", result("superseded"), silent=5), AwaitManifest)


@pytest.mark.parametrize("key", ["model_files", "download_urls"])
def test_earlier_trainers_success_is_understood(key: str) -> None:
    output = {"status": "success", key: {"adapter.safetensors": "https://x/a"}, "model_metadata": {"final_loss": 1}}
    verdict = look("completed", output)
    assert isinstance(verdict, Finish)
    assert verdict.legacy == LegacyResult(files={"adapter.safetensors": "https://x/a"}, metadata={"final_loss": 1})


def test_earlier_trainers_progress_is_understood() -> None:
    progress = parse_progress(
        {"progress": 40, "current_step": 3, "metrics": {"training_loss": float("nan")}}, run_id=RUN
    )
    assert progress is not None
    assert (progress.progress, progress.current_step, progress.metrics) == (40, 3, {"training_loss": None})


@pytest.mark.parametrize(
    "output", [None, "half", {}, {"progress": "much"}, {"run_id": "another", "stage": "training", "progress": 1}]
)
def test_progress_of_another_run_is_ignored(output: Any) -> None:
    assert parse_progress(output, run_id=RUN) is None


def limits() -> RetryLimits:
    return RetryLimits(3, 5, base_seconds=10, max_seconds=60, rng=random.Random(1))


def wait(fault: Fault, transient: int = 0, infrastructure: int = 0) -> float | None:
    failure = Failure("x", fault, "It broke.")
    return retry_after(failure, transient_failures=transient, infrastructure_failures=infrastructure, limits=limits())


def test_permanent_fault_is_not_retried() -> None:
    assert wait(Fault.PERMANENT) is None


def test_transient_faults_are_retried_with_bounded_backoff() -> None:
    waits = [wait(Fault.TRANSIENT, transient=n) for n in range(3)]
    assert waits[2] is None
    assert all(w is not None and 5 * 2**n <= w <= 10 * 2**n for n, w in enumerate(waits[:2]))


def test_infrastructure_faults_have_a_retry_limit_of_their_own() -> None:
    waits = [wait(Fault.INFRASTRUCTURE, transient=9, infrastructure=n) for n in range(6)]
    assert waits[5] is None
    assert all(w is not None and w <= 60 for w in waits[:5])


@pytest.mark.fault(36)
def test_last_failure_states_the_number_of_attempts() -> None:
    failure = Failure("x", Fault.TRANSIENT, "It broke.")
    assert "3 attempts" in exhausted(failure, 3).message
    assert exhausted(failure, 1) is failure


def test_every_error_code_has_a_culprit() -> None:
    assert set(FAULTS) == set(ErrorCode)


@pytest.mark.parametrize(
    ("losses", "validation", "expected"),
    [
        ([4.0, 1.0], None, (5, "excellent")),
        ([4.0, 2.5], None, (4, "good")),
        ([4.0, 3.2], None, (3, "fair")),
        ([4.0, 3.7], None, (2, "poor")),
        ([4.0, 4.0], None, (1, "poor")),
        ([4.0, 1.0], 2.0, (4, "overfit")),
        ([], None, (3, "unknown")),
        ([0.0, 0.0], None, (1, "poor")),
    ],
)
def test_quality_score_follows_the_applications_rule(
    losses: list[float], validation: float | None, expected: tuple[int, str]
) -> None:
    points = [Point(step=step, epoch=1, training_loss=loss) for step, loss in enumerate(losses, 1)]
    rated = rate_training(points, final_validation_loss=validation)
    assert (rated.overall_score, rated.convergence_quality) == expected


@pytest.mark.parametrize(
    ("accuracy", "validation", "expected"),
    [
        (0.95, None, (5, "excellent")),
        (0.85, None, (4, "good")),
        (0.75, None, (3, "fair")),
        (0.65, None, (2, "poor")),
        (0.5, None, (1, "poor")),
        (0.95, (0.5, 0.3), (4, "overfit")),
        (None, None, (3, "unknown")),
    ],
)
def test_quality_of_a_preference_run_is_its_share_of_right_ratings(
    accuracy: float | None, validation: tuple[float, float] | None, expected: tuple[int, str]
) -> None:
    final, best = validation or (None, None)
    metrics = FinalMetrics(final_reward_accuracy=accuracy, final_validation_loss=final, best_validation_loss=best)
    points = [Point(step=step, epoch=1, training_loss=loss) for step, loss in enumerate((0.69, 0.1), 1)]
    rated = rate_run("dpo", points, metrics)
    assert (rated.overall_score, rated.convergence_quality) == expected
    assert rated.loss_reduction_percent == pytest.approx(85.51)
    assert perplexity_of("dpo", metrics) is None


def test_rewards_of_a_preference_run_are_means_of_its_last_steps() -> None:
    """A step rates as few answers as its batch has: the last one may be right by chance."""
    rewards = [(0.1, 0.5)] * 18 + [(1.0, 0.5), (2.0, 1.0)]
    points = [
        Point(step=step, epoch=1, training_loss=0.5, reward_margin=margin, reward_accuracy=accuracy)
        for step, (margin, accuracy) in enumerate(rewards, 1)
    ]
    rated = rate_run("kto", points, FinalMetrics(final_reward_margin=2.0, final_reward_accuracy=1.0))
    assert rated.rewards == {"reward_margin": 1.5, "reward_accuracy": 0.75}
    assert rated.convergence_quality == "fair"
    assert rate_run("sft", points, FinalMetrics()).rewards == {}


@pytest.mark.parametrize("count", [0, -1, 10**9, "2", 1.5, None])
def test_impossible_gpu_count_becomes_unknown(count: object) -> None:
    reported = {"run_id": "r", "stage": "training", "progress": 30, "gpu_count": count}
    progress = parse_progress(reported, run_id="r")
    assert progress is not None
    assert progress.gpu_count is None
