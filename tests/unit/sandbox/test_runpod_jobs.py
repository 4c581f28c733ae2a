"""The life of a job on the local RunPod, with a clock that only the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.runpod.jobs import BadRequestError, Job, Jobs, Policy, Status, UnknownJobError
from sandbox.runpod.ledger import Ledger, Outcome
from tests.scripted import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def jobs(clock: Clock, ledger: Ledger) -> Jobs:
    return Jobs(clock, ledger)


def submit(jobs: Jobs, **policy: int) -> Job:
    return jobs.submit({"input": {"run_id": "run-1"}, **({"policy": policy} if policy else {})})


def outcomes(ledger: Ledger) -> list[Outcome | None]:
    return [execution.outcome for execution in ledger.executions]


class TestAnswers:
    def test_waiting_job_reports_only_its_status(self, jobs: Jobs, clock: Clock) -> None:
        job = submit(jobs)
        assert job.answer(clock()) == {"id": job.id, "status": "IN_QUEUE"}

    def test_times_are_milliseconds_of_waiting_and_of_running(self, jobs: Jobs, clock: Clock) -> None:
        job = submit(jobs)
        clock.now += 31.618
        jobs.take("w1")
        clock.now += 1.437
        jobs.finish(job.id, "w1", {"output": {"ok": True}})
        clock.now += 60
        assert job.answer(clock()) == {
            "id": job.id,
            "status": "COMPLETED",
            "output": {"ok": True},
            "delayTime": 31618,
            "executionTime": 1437,
            "workerId": "w1",
        }

    def test_output_of_a_running_job_is_its_latest_progress(self, jobs: Jobs, clock: Clock) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.progress(job.id, {"step": 1})
        jobs.progress(job.id, {"step": 2})
        assert job.answer(clock())["output"] == {"step": 2}

    def test_an_error_keeps_the_other_keys_in_the_output(self, jobs: Jobs, clock: Clock) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.finish(job.id, "w1", {"error": "evicted", "output": {"step": 4}})
        answer = job.answer(clock())
        assert (answer["status"], answer["error"], answer["output"]) == ("FAILED", "evicted", {"step": 4})

    def test_a_result_without_output_leaves_the_key_out(self, jobs: Jobs, clock: Clock) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.finish(job.id, "w1", {})
        assert "output" not in job.answer(clock())


class TestRequests:
    @pytest.mark.parametrize("body", [None, [], {}, {"input": None}, {"input": "text"}])
    def test_a_body_without_an_input_object_is_refused(self, jobs: Jobs, body: Any) -> None:
        with pytest.raises(BadRequestError, match="input"):
            jobs.submit(body)

    @pytest.mark.parametrize(
        ("policy", "key"),
        [
            ({"executionTimeout": 4_999}, "executionTimeout"),
            ({"executionTimeout": 604_800_001}, "executionTimeout"),
            ({"executionTimeout": 60_000.5}, "executionTimeout"),
            ({"ttl": 9_999}, "ttl"),
            ({"ttl": True}, "ttl"),
        ],
    )
    def test_a_policy_out_of_range_is_refused(self, policy: dict[str, Any], key: str) -> None:
        with pytest.raises(BadRequestError, match=key):
            Policy.parse(policy)

    def test_default_policy_is_ten_minutes_and_a_day(self) -> None:
        assert Policy.parse(None) == Policy(execution_timeout_seconds=600, ttl_seconds=86_400)


class TestTimeLimits:
    def test_the_execution_timeout_fails_the_job_and_stops_its_worker(
        self, jobs: Jobs, clock: Clock, ledger: Ledger
    ) -> None:
        job = submit(jobs, executionTimeout=5_000)
        clock.now += 100
        jobs.take("w1")
        clock.now += 5
        jobs.expire()
        answer = job.answer(clock())
        assert (answer["status"], answer["error"]) == ("FAILED", "executionTimeout exceeded")
        assert jobs.stops_for("w1") == [job.id]
        jobs.leave("w1")
        assert outcomes(ledger) == [Outcome.STOPPED]

    @pytest.mark.parametrize("taken", [False, True])
    def test_the_ttl_counts_from_submission_and_deletes_even_a_running_job(
        self, jobs: Jobs, clock: Clock, taken: bool
    ) -> None:
        job = submit(jobs, ttl=10_000)
        clock.now += 9.9
        if taken:
            jobs.take("w1")
        jobs.expire()
        assert jobs.get(job.id) is job
        clock.now += 0.1
        jobs.expire()
        with pytest.raises(UnknownJobError):
            jobs.get(job.id)
        assert jobs.waiting() == 0
        assert jobs.stops_for("w1") == ([job.id] if taken else [])

    @pytest.mark.parametrize(("sync", "seconds"), [(False, 1800), (True, 60)])
    def test_a_result_is_kept_for_half_an_hour_or_a_minute(
        self, jobs: Jobs, clock: Clock, sync: bool, seconds: float
    ) -> None:
        job = jobs.submit({"input": {"x": 1}}, sync=sync)
        jobs.take("w1")
        jobs.finish(job.id, "w1", {"output": 1})
        clock.now += seconds - 1
        jobs.expire()
        assert jobs.get(job.id).status is Status.COMPLETED
        clock.now += 1
        jobs.expire()
        with pytest.raises(UnknownJobError):
            jobs.get(job.id)


class TestLostWorkers:
    def test_lost_job_is_dispatched_once_more_then_fails(self, jobs: Jobs, clock: Clock, ledger: Ledger) -> None:
        job = submit(jobs)
        clock.now += 50
        jobs.take("w1")
        jobs.leave("w1")
        assert job.is_waiting
        clock.now += 3
        assert jobs.take("w2") is job
        assert job.answer(clock())["delayTime"] == 3000  # a redispatch restarts the delay
        jobs.leave("w2")
        answer = job.answer(clock())
        assert (answer["status"], answer["error"]) == ("FAILED", "job timed out after 1 retries")
        assert answer["retries"] == 1
        assert outcomes(ledger) == [Outcome.LOST, Outcome.LOST]

    def test_silent_worker_loses_its_job_and_the_first_result_wins(self, jobs: Jobs, ledger: Ledger) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.suspect("w1")
        jobs.take("w2")
        assert len(jobs.open_executions()) == 2
        jobs.finish(job.id, "w1", {"output": "first"})
        jobs.finish(job.id, "w2", {"output": "second"})
        assert job.result == {"output": "first"}
        assert outcomes(ledger) == [Outcome.COMPLETED, Outcome.IGNORED]

    def test_result_before_the_redispatch_removes_the_queued_job(self, jobs: Jobs) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.suspect("w1")
        jobs.finish(job.id, "w1", {"output": "first"})
        assert job.status is Status.COMPLETED
        assert jobs.take("w2") is None

    def test_a_job_delivered_twice_runs_on_two_workers(self, jobs: Jobs) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.deliver_twice(job.id)
        assert jobs.take("w2") is job
        assert {execution.worker_id for execution in jobs.open_executions()} == {"w1", "w2"}
        jobs.leave("w2")  # losing the second copy does not lose the job
        assert job.status is Status.IN_PROGRESS

    @pytest.mark.parametrize(
        ("then", "status"), [("stuck", "IN_PROGRESS"), ("retried", "IN_QUEUE"), ("completed", "COMPLETED")]
    )
    def test_refused_result_leaves_the_job_in_a_state_seen_at_runpod(
        self, jobs: Jobs, clock: Clock, ledger: Ledger, then: Any, status: str
    ) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.refuse_result("w1", job.id, then)
        jobs.leave("w1")
        clock.now += 700  # past the execution time-out, which no longer applies
        jobs.expire()
        assert job.status == status
        assert "output" not in job.answer(clock())
        assert outcomes(ledger) == [Outcome.RESULT_LOST]


class TestCancelling:
    def test_a_waiting_job_is_cancelled_at_once(self, jobs: Jobs) -> None:
        job = submit(jobs)
        assert jobs.cancel(job.id).status is Status.CANCELLED
        assert jobs.take("w1") is None

    def test_stop_is_repeated_until_the_worker_leaves_the_job(self, jobs: Jobs) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.cancel(job.id)
        assert jobs.stops_for("w1") == jobs.stops_for("w1") == [job.id]
        jobs.leave("w1")
        assert jobs.stops_for("w1") == []

    def test_neither_a_late_result_nor_a_late_update_changes_a_cancelled_job(self, jobs: Jobs, ledger: Ledger) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.cancel(job.id)
        jobs.progress(job.id, {"step": 9})
        jobs.finish(job.id, "w1", {"output": "late"})
        assert (job.status, job.result) == (Status.CANCELLED, {})
        assert outcomes(ledger) == [Outcome.IGNORED]

    def test_cancelling_a_job_that_is_over_changes_nothing(self, jobs: Jobs) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.finish(job.id, "w1", {"output": 1})
        assert jobs.cancel(job.id).status is Status.COMPLETED


class TestLateProgress:
    def test_unguarded_late_update_leaves_the_job_in_progress_for_ever(self, jobs: Jobs, clock: Clock) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.finish(job.id, "w1", {"output": "result"})
        jobs.progress(job.id, {"step": 1}, guarded=False)
        clock.now += 3 * 3600
        jobs.expire()
        answer = job.answer(clock())
        assert (answer["status"], answer["output"]) == ("IN_PROGRESS", {"step": 1})

    def test_guarded_late_update_changes_nothing(self, jobs: Jobs) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.finish(job.id, "w1", {"output": "result"})
        jobs.progress(job.id, {"step": 1})
        assert (job.status, job.result) == (Status.COMPLETED, {"output": "result"})


class TestRetry:
    def test_a_failed_job_is_queued_again_without_its_old_output(self, jobs: Jobs, clock: Clock) -> None:
        job = submit(jobs)
        jobs.take("w1")
        jobs.finish(job.id, "w1", {"error": "boom", "output": {"x": 1}})
        assert jobs.retry(job.id).answer(clock()) == {"id": job.id, "status": "IN_QUEUE"}
        assert jobs.take("w1") is job

    def test_only_failed_jobs_can_be_retried(self, jobs: Jobs) -> None:
        job = submit(jobs)
        with pytest.raises(BadRequestError, match="IN_QUEUE"):
            jobs.retry(job.id)

    def test_a_job_that_timed_out_can_be_retried(self, jobs: Jobs) -> None:
        job = submit(jobs)
        jobs.time_out(job.id)
        assert job.status is Status.TIMED_OUT
        assert jobs.retry(job.id).is_waiting


def test_purging_removes_what_waits_and_leaves_what_runs(jobs: Jobs) -> None:
    running, waiting = submit(jobs), submit(jobs)
    jobs.take("w1")
    assert jobs.purge() == 1
    assert jobs.get(running.id).status is Status.IN_PROGRESS
    with pytest.raises(UnknownJobError):
        jobs.get(waiting.id)


def test_health_counts_jobs_by_what_they_do(jobs: Jobs) -> None:
    done, _running, _waiting = submit(jobs), submit(jobs), submit(jobs)
    jobs.take("w1")
    jobs.take("w2")
    jobs.finish(done.id, "w1", {"output": 1})
    assert jobs.counts() == {"completed": 1, "failed": 0, "inProgress": 1, "inQueue": 1, "retried": 0}


def test_the_ledger_knows_every_launch_by_its_run(jobs: Jobs, ledger: Ledger) -> None:
    job = submit(jobs)
    assert [(launch.job_id, launch.run_id) for launch in ledger.launches] == [(job.id, "run-1")]
