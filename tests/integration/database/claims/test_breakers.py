"""Failures of a base model or an image hold everybody's jobs on it; one job at a time tries again."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.database.rows import Database, Row, report

HERE, THERE = "https://api.runpod.ai/v2/here", "https://api.runpod.ai/v2/there"
BASE, ANOTHER = "org/broken", "org/sound"
BLAME = {"kind": "base_model", "at_once": False, "hold_seconds": 600}


class Crew:
    """Runs of different users, launched and ended as workers do it."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def claim(self) -> Row:
        """Claim a run of a new user, or of the job that has waited longest."""
        (claimed,) = self.db.claim()
        return dict(claimed["run"])

    def passes(self, run: Row, base: str = BASE, endpoint: str = HERE) -> bool:
        answer = self.db.call("pass_breakers", run["id"], run["lease_token"], base, endpoint)
        assert answer["go"] or answer["reason"] == "held", answer
        return bool(answer["go"])

    def launched(self, base: str = BASE, endpoint: str = HERE) -> Row:
        """Claim and launch a run of a new user, which no breaker holds."""
        self.db.jobs()
        run = self.claim()
        assert self.passes(run, base, endpoint)
        self.post(run, endpoint)
        return run

    def post(self, run: Row, endpoint: str = HERE) -> None:
        assert self.db.begin(run, str(run["id"]), endpoint)["may_launch"]

    def fail(self, run: Row, job_status: str = "failed", **blame: Any) -> None:
        self.db.settle(run, job_status, error_code="child_crashed", blame={**BLAME, **blame})

    def held(self) -> bool:
        """Whether a breaker holds a new user's job on the broken base."""
        (job_id,) = self.db.jobs()
        run = self.claim()
        assert str(run["job_id"]) == str(job_id)
        passed = self.passes(run)
        if passed:
            self.db.settle(run, "cancelled")
        return not passed

    def let_pass_time(self) -> None:
        """Let the time of the next trial pass."""
        self.db.rows("update training_breakers set probe_at = now()")
        self.db.rows("update training_holds set held_until = now()")


@pytest.fixture
def crew(db: Database) -> Crew:
    return Crew(db)


def open_breaker(crew: Crew) -> None:
    for _ in range(2):
        crew.fail(crew.launched())


def test_broken_base_model_costs_its_users_two_launches_in_all(crew: Crew, db: Database) -> None:
    jobs = [db.jobs()[0] for _ in range(5)]
    for _ in range(3):
        for claimed in iter(db.claim, []):
            run = claimed[0]["run"]
            if crew.passes(run):
                crew.post(run)
                crew.fail(run, "queued")
        # The retry is due, but the breaker's next trial is not.
        db.rows("update training_runs set next_attempt_at = now()")
    assert db.row("select count(*) from training_launches")["count"] == 2
    waiting = [db.job(job_id) for job_id in jobs]
    assert {(job["status"], job["current_stage"]) for job in waiting} == {("queued", "waiting_for_base_model")}
    assert all("fail on the GPU at the moment" in job["error_message"] for job in waiting)


def test_failure_of_a_run_from_before_the_breaker_opened_is_settled(crew: Crew, db: Database) -> None:
    runs = [crew.launched() for _ in range(3)]
    for run in runs:
        crew.fail(run, "queued")
    assert [db.job(run["job_id"])["status"] for run in runs] == ["queued"] * 3
    assert db.row("select times_opened from training_breakers")["times_opened"] == 1


def test_held_job_uses_no_attempt_and_no_slot(crew: Crew, db: Database) -> None:
    open_breaker(crew)
    (job_id,) = db.jobs()
    for _ in range(3):
        assert not crew.passes(crew.claim())
        db.rows("update training_holds set held_until = now()")
    assert db.rows("select id from training_runs where job_id = %s", job_id) == []
    assert db.job(job_id)["retry_count"] == 0
    assert db.call("queue_health")["live_runs"] == 0


def test_failures_of_a_single_user_open_no_breaker(crew: Crew, db: Database) -> None:
    user = db.user()
    for _ in range(4):
        db.jobs(user=user)
        run = crew.claim()
        assert crew.passes(run)
        crew.post(run)
        crew.fail(run)
    assert not crew.held()


def test_failure_without_a_culprit_opens_no_breaker(crew: Crew, db: Database) -> None:
    for _ in range(4):
        db.settle(crew.launched(), "failed", blame=None)
    assert not crew.held()


def test_open_breaker_leaves_other_bases_and_endpoints_alone(crew: Crew) -> None:
    open_breaker(crew)
    assert crew.held()
    crew.launched(ANOTHER)
    crew.launched(BASE, THERE)


def test_broken_image_holds_jobs_of_every_base_model(crew: Crew, db: Database) -> None:
    crew.fail(crew.launched(), kind="image", at_once=True)
    (job_id,) = db.jobs()
    assert not crew.passes(crew.claim(), ANOTHER)
    assert db.job(job_id)["current_stage"] == "waiting_for_gpu"
    crew.launched(ANOTHER, THERE)


def test_open_breaker_lets_one_trial_job_through_at_a_time(crew: Crew, db: Database) -> None:
    open_breaker(crew)
    db.jobs()
    db.jobs()
    assert [crew.passes(crew.claim()), crew.passes(crew.claim())] == [False, False]
    crew.let_pass_time()
    probe, other = crew.claim(), crew.claim()
    assert [crew.passes(probe), crew.passes(other)] == [True, False]
    assert db.job(probe["job_id"])["error_message"] is None
    crew.post(probe)
    crew.fail(probe)
    waits = db.row("select extract(epoch from probe_at - now()) as seconds, times_opened from training_breakers")
    assert (waits["times_opened"], 1190 < waits["seconds"] <= 1200) == (2, True)
    assert crew.held()


def test_wait_between_trial_jobs_doubles_up_to_a_day(crew: Crew, db: Database) -> None:
    open_breaker(crew)
    for _ in range(12):
        crew.let_pass_time()
        crew.fail(crew.launched())
    waits = db.row("select extract(epoch from probe_at - now()) as seconds from training_breakers")
    assert 86_300 < waits["seconds"] <= 86_400


def test_inconclusive_trial_lets_another_job_try_next(crew: Crew, db: Database) -> None:
    open_breaker(crew)
    crew.let_pass_time()
    db.settle(crew.launched(), "cancelled")
    crew.launched()
    assert crew.held()


@pytest.mark.parametrize("how", ["trains", "completes"])
def test_successful_trial_closes_the_breaker(crew: Crew, db: Database, how: str) -> None:
    open_breaker(crew)
    assert crew.held()
    (waiting,) = db.rows("select job_id from training_holds")
    crew.let_pass_time()
    db.rows("update training_holds set held_until = now() + interval '1 hour'")
    probe = crew.launched()
    if how == "trains":
        db.call("record_progress", [report(probe, current_step=1, current_stage="training")])
    else:
        db.settle(probe)
    assert db.rows("select * from training_breakers") == db.rows("select * from training_holds") == []
    assert crew.claim()["job_id"] == str(waiting["job_id"])


def test_operator_closes_a_breaker_at_once(crew: Crew, db: Database) -> None:
    open_breaker(crew)
    assert crew.held()
    held = db.call("queue_health")["held"]["breakers"]
    assert [(row["name"], row["endpoint"], row["users"], row["jobs"]) for row in held] == [(BASE, HERE, 2, 1)]
    assert db.call("resume_training", "org/unknown") == []
    assert db.call("resume_training", BASE) == [{"kind": "base_model", "name": BASE, "endpoint": HERE, "jobs": 1}]
    assert crew.passes(crew.claim())


def test_unconfirmed_launch_is_not_returned_to_the_queue(crew: Crew, db: Database) -> None:
    run = crew.launched()
    open_breaker(crew)
    assert crew.passes(run)
    assert db.run(UUID(str(run["id"])))["status"] == "claimed"


def test_cancelled_job_is_not_returned_to_the_queue(crew: Crew, db: Database) -> None:
    open_breaker(crew)
    (job_id,) = db.jobs()
    run = crew.claim()
    db.rows("update training_jobs set status = 'cancelled' where id = %s", job_id)
    assert crew.passes(run)
    assert db.job(job_id)["status"] == "cancelled"


def test_endpoint_start_is_timed_until_a_worker_is_ready(db: Database) -> None:
    def note(state: str) -> float:
        return float(db.call("note_endpoint", "runpod", HERE, state, "ill")["starting_seconds"])

    def pass_seconds(seconds: int, column: str = "starting_since") -> None:
        db.rows(f"update training_endpoints set {column} = {column} - make_interval(secs => %s)", seconds)

    assert note("starting") < 5
    pass_seconds(700)
    assert 699 < note("unknown") < 720
    assert 699 < note("starting") < 720
    assert [row["problem"] for row in db.call("queue_health")["held"]["endpoint_problems"]] == ["ill"]
    pass_seconds(1000, "looked_at")
    assert note("starting") < 5
    pass_seconds(700)
    assert note("well") == note("unknown") == 0
