"""The daemon beside the dispatcher that it replaces, which selects jobs, updates them by id, and ignores errors."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from sandbox.standin import Mishap, runs_trained_twice
from tests.application.pages import Pages
from tests.application.pipeline import Pipeline
from tests.application.user import ENDED
from tests.database.rows import Database, Row, outcome
from tests.documented import sql_of_page
from tests.processes.stage import Stage
from tests.processes.waiting import until


class OldDispatcher:
    """`process-training-jobs` as documented: unguarded updates, side effects before updates, errors ignored.

    It waits `delay_seconds` between reading running jobs and updating them. Between reading queued jobs and updating
    them it waits until a worker has claimed one, so that it acts on outdated rows; except
    every third time, when it may be first.
    """

    def __init__(self, stage: Stage, *, delay_seconds: float) -> None:
        self._stage, self._delay_seconds = stage, delay_seconds
        self._tables = stage.project.client()
        self._runpod = httpx.Client(headers={"authorization": f"Bearer {stage.runpod.api_key}"}, timeout=30)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self.launched: list[str] = []
        """The jobs that it launched, one entry per launch."""
        self.rounds = 0
        self._looks = 0

    def __enter__(self) -> OldDispatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tables.close()
        self._runpod.close()

    def _repeat(self) -> None:
        while not self._stop.is_set():
            self.dispatch()
            self.poll()
            self.rounds += 1

    def end_what_was_begun(self) -> None:
        """Wait until it has written everything that it read before this call."""
        begun = self.rounds + 1
        until(lambda: self.rounds > begun, "the old dispatcher goes round", state=self._stage.log)

    def dispatch(self) -> None:
        queued = self._select("status=eq.queued", "order=created_at.asc", "limit=5")
        self._looks += bool(queued)
        if queued and self._looks % 3:
            until(
                lambda: self._stop.is_set() or any(map(self._is_claimed, queued)),
                "the worker claims one of the queued jobs", state=self._stage.log,
            )  # fmt: skip
        for job in queued:
            self._update(job, status="initializing", current_stage="initializing")
            payload = {"job_id": job["id"], "dataset_url": "https://example.com/d", "hyperparameters": {}}
            answer = self._runpod.post(f"{self._stage.runpod.api_url}/run", json={"input": payload})
            self.launched.append(job["id"])
            self._update(
                job, status="running", current_stage="queued_on_gpu", external_job_id=answer.json()["id"],
                started_at="2026-01-01T00:00:00Z",
            )  # fmt: skip

    def _is_claimed(self, job: Row) -> bool:
        return bool(self._stage.runs(job["id"]))

    def poll(self) -> None:
        running = self._select("status=in.(running,initializing)", "external_job_id=not.is.null")
        seen = [self._runpod.get(f"{self._stage.runpod.api_url}/status/{j['external_job_id']}") for j in running]
        self._stop.wait(self._delay_seconds)
        for job, answer in zip(running, seen, strict=True):
            self._take(job, answer.json() if answer.status_code == 200 else {})

    def _take(self, job: Row, answer: Row) -> None:
        status = answer.get("status")
        if status == "IN_PROGRESS":
            self._insert("metrics_points", job_id=job["id"], epoch=1, step=1, training_loss=9, learning_rate=0)
            self._update(job, progress=1, current_step=0, current_stage="training", current_cost=99)
        elif status in {"COMPLETED", "FAILED"}:
            end = "completed" if status == "COMPLETED" else "failed"
            self._insert(
                "cost_records", user_id=job["user_id"], job_id=job["id"], cost_type="training_compute", amount=99,
                billing_period="2026-01-01", details={"gpu_type": "H100", "gpu_count": 1, "duration_hours": 1},
            )  # fmt: skip
            self._insert(
                "notifications", user_id=job["user_id"], type=f"job_{end}", title="Old", message="undefined",
                metadata={"job_id": job["id"]},
            )  # fmt: skip
            self._update(job, status=end, current_stage=end, final_cost=99, progress=100)

    def _select(self, *conditions: str) -> list[Row]:
        mine = f"user_id=eq.{self._stage.user.user_id}"
        rows: list[Row] = self._tables.get(f"/rest/v1/training_jobs?{'&'.join((mine, *conditions))}").json()
        return rows

    def _update(self, job: Row, **columns: Any) -> None:
        self._tables.patch(f"/rest/v1/training_jobs?id=eq.{job['id']}", json=columns)

    def _insert(self, table: str, **columns: Any) -> None:
        self._tables.post(f"/rest/v1/{table}", json=columns)


@pytest.mark.fault(1)
def test_old_dispatcher_and_daemon_launch_each_job_once(stage: Stage) -> None:
    dataset = stage.user.upload()
    worker = stage.worker()
    with OldDispatcher(stage, delay_seconds=0.3) as old:
        jobs = []
        for number in range(12):
            jobs.append(stage.user.queue(dataset, max_steps=20 + 10 * (number % 3)))
            time.sleep(0.1)
        cancelled = stage.user.queue(dataset, seed=int(Mishap.ENDLESS), max_steps=100)
        ours = wait_until_none_is_queued(stage, [*jobs, cancelled])
        if cancelled in ours:
            stage.training(cancelled)
        stage.user.cancel(cancelled)
        for job_id in ours:
            stage.settled(job_id)
        # Updates that it still has to write come too late for every job.
        old.end_what_was_begun()
    stage.stop(worker)
    pages = Pages(stage.database, stage.user.user_id)
    assert len(ours) >= 3
    for job_id in ours - {cancelled}:
        assert_is_as_if_alone(stage, pages, job_id)
    assert stage.user.job(cancelled)["status"] == "cancelled"
    taken_by_both = ours & set(old.launched)
    assert taken_by_both, "the race that this test is about did not happen"
    assert set(jobs) - ours <= set(old.launched)
    # Jobs that the old dispatcher sent are not trained, since this trainer does not know their payload.
    assert runs_trained_twice(stage.steps(next(iter(ours)))) == set()


def wait_until_none_is_queued(stage: Stage, jobs: list[str]) -> set[str]:
    """Wait until no job is queued; returns the jobs that the worker has claimed."""
    for job_id in jobs:
        stage.until(job_id, lambda row: row["status"] != "queued", "somebody takes it")
    return {job_id for job_id in jobs if stage.runs(job_id)}


def assert_is_as_if_alone(stage: Stage, pages: Pages, job_id: str) -> None:
    job = pages.monitor(job_id)
    (run,) = stage.runs(job_id)
    assert (job["status"], run["status"], job["artifact_id"]) == ("completed", "succeeded", run["id"])
    assert len(stage.launches(job_id)) == 1
    assert job["external_job_id"] == run["external_job_id"]
    assert job["started_at"] > "2026-02"
    (cost,) = [cost for cost in pages.costs() if cost["job_id"] == job_id]
    assert job["final_cost"] == cost["amount"] < 99
    assert stage.user.notices(job_id) == ["artifact_ready", "job_completed", "job_started"]
    points = Counter(point["step"] for point in pages.chart(job_id))
    assert set(points.values()) == {1}
    assert len(points) == job["total_steps"]


# ── the guard itself, state by state ────────────────────────────────────────────────────────────────


def through_the_api(db: Database, statement: str, *values: Any) -> None:
    """Run a statement as PostgREST does for the service's key."""
    with db.connection.transaction():
        db.connection.execute("set local role service_role")
        db.rows(statement, *values)


_OLD_UPDATE = (
    "update training_jobs set status = %s, current_stage = 'training', progress = 1, external_job_id = 'theirs',"
    " started_at = now(), final_cost = 99, error_message = 'undefined' where id = %s"
)


@pytest.mark.parametrize("state", ["claimed", "launched", "running", "completed", "failed", "cancelled"])
@pytest.mark.parametrize("status", ["queued", "initializing", "running", "completed", "failed"])
def test_old_dispatcher_cannot_change_a_job_of_the_worker(db: Database, state: str, status: str) -> None:
    run: Row = {"claimed": db.claimed_run, "launched": lambda: db.launched_run()[0]}.get(
        state, lambda: db.running_run()[0]
    )()
    if state in ENDED:
        db.settle(run, state)
    before = db.job(run["job_id"])
    through_the_api(db, _OLD_UPDATE, status, run["job_id"])
    assert {**db.job(run["job_id"]), "updated_at": None} == {**before, "updated_at": None}


@pytest.mark.parametrize("state", ["claimed", "running"])
def test_cancel_by_the_application_always_takes_effect(db: Database, state: str) -> None:
    run = db.claimed_run() if state == "claimed" else db.running_run()[0]
    through_the_api(db, _OLD_UPDATE, "cancelled", run["job_id"])
    job = db.job(run["job_id"])
    assert (job["status"], job["final_cost"]) == ("cancelled", 99)
    assert (job["external_job_id"], job["error_message"]) == (run["external_job_id"], None)
    (news,) = db.call("renew_training_runs", [{"run_id": str(run["id"]), "lease_token": str(run["lease_token"])}], 60)
    assert news["cancel_requested"]


def test_jobs_of_the_old_dispatcher_are_not_guarded(db: Database) -> None:
    (never_ours,) = db.jobs()
    through_the_api(db, _OLD_UPDATE, "running", never_ours)
    assert db.job(never_ours)["status"] == "running"
    assert db.claim(max_jobs=5) == []
    run = db.claimed_run()
    db.settle(run, "queued")
    db.rows("update training_jobs set external_job_id = null where id = %s", never_ours)
    through_the_api(db, _OLD_UPDATE, "completed", run["job_id"])
    assert db.job(run["job_id"])["status"] == "completed"


def test_only_rows_about_a_job_of_the_worker_are_dropped(db: Database) -> None:
    run, (theirs,) = db.running_run()[0], db.jobs()
    user = db.job(theirs)["user_id"]
    for job_id in (run["job_id"], theirs):
        through_the_api(
            db, "insert into metrics_points (job_id, epoch, step, training_loss, learning_rate)"
            " values (%s, 1, 1, 1, 0)", job_id,
        )  # fmt: skip
        through_the_api(
            db, "insert into cost_records (user_id, job_id, cost_type, amount, billing_period)"
            " values (%s, %s, 'training_compute', 1, now())", user, job_id,
        )  # fmt: skip
        for kind in ("job_queued", "job_completed"):
            through_the_api(
                db, "insert into notifications (user_id, type, title, message, metadata)"
                " values (%s, %s, 'x', 'x', jsonb_build_object('job_id', %s::text))", user, kind, job_id,
            )  # fmt: skip
    kept = db.rows("select job_id from metrics_points union all select job_id from cost_records")
    assert [row["job_id"] for row in kept] == [theirs, theirs]
    notifications = db.rows("select type, metadata->>'job_id' as job_id from notifications")
    assert Counter(row["type"] for row in notifications) == {"job_queued": 2, "job_completed": 1}
    through_the_api(
        db, "insert into notifications (user_id, type, title, message) values (%s, 'job_completed', 'x', 'x')", user
    )


def test_update_that_waited_for_a_claim_is_still_guarded(db: Database, database: str) -> None:
    """The dispatcher's update began before the claim was committed, and continues after it."""
    (job_id,) = db.jobs()
    blocked = threading.Event()
    with psycopg.connect(database) as claiming:
        claiming.execute("select claim_training_jobs('w1', 1, 60, null)")

        def update() -> None:
            own = Database(database)
            blocked.set()
            through_the_api(own, _OLD_UPDATE, "running", job_id)
            own.close()

        waiting = threading.Thread(target=update)
        waiting.start()
        blocked.wait()
        waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        until(lambda: db.rows(waits), "the update waits for the claim")
        claiming.commit()
    waiting.join()
    assert (db.job(job_id)["status"], db.job(job_id)["external_job_id"]) == ("initializing", None)


# ── the newer queue ─────────────────────────────────────────────────────────────────────────────────


def pipeline_run(db: Database, pipeline: Pipeline, state: str) -> tuple[UUID, Row]:
    """A job of the newer queue that a worker holds or has settled, and its run."""
    user = db.user()
    job_id = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    run = db.claim()[0]["run"]
    token = uuid4().hex * 2
    if state != "claimed":
        assert db.begin(run, token)["may_launch"]
        assert db.call("record_launch", run["id"], run["lease_token"], "runpod", "ours")
    if state not in {"claimed", "launched"}:
        assert db.call("check_in_run", token, "ours", str(uuid4()))["may_train"]
    if state in ENDED:
        ending = outcome(state)
        if state == "completed":
            ending["artifact"]["archive"] = f"lora-models/adapters/{job_id}.tar.gz"
        assert db.call("settle_run", run["id"], run["lease_token"], ending) == state
    return job_id, run


# The updates of the other dispatcher after its POST, and of its trainer, each by the job's id only.
_THEIR_UPDATES = (
    "status = 'queued', updated_at = now()",
    "status = 'initializing', runpod_job_id = 'theirs', started_at = now(), updated_at = now()",
    "status = 'running', progress = 1, current_epoch = 0, current_step = 0, updated_at = now()",
    "status = 'failed', error_message = 'undefined', completed_at = now()",
    "status = 'completed', progress = 100, final_loss = 9, training_time_seconds = 9, completed_at = now(),"
    " adapter_file_path = 'lora-models/adapters/theirs.tar.gz'",
)


@pytest.mark.parametrize("state", ["claimed", "launched", "running", "completed", "failed", "cancelled"])
def test_newer_queue_jobs_are_guarded_and_deployed_once(db: Database, pipeline: Pipeline, state: str) -> None:
    job_id, _ = pipeline_run(db, pipeline, state)
    before = {**pipeline.job(job_id), "updated_at": None}
    deployed_for = [row["adapter_file_path"] for row in pipeline.history(job_id) if row["status"] == "completed"]
    for columns in _THEIR_UPDATES:
        through_the_api(db, f"update pipeline_training_jobs set {columns} where id = %s", job_id)
    assert {**pipeline.job(job_id), "updated_at": None} == before
    assert {row["adapter_file_path"] for row in pipeline.history(job_id) if row["status"] == "completed"} == set(
        deployed_for
    )


def test_other_writers_may_always_write_their_own_columns(db: Database, pipeline: Pipeline) -> None:
    job_id, _ = pipeline_run(db, pipeline, "completed")
    through_the_api(
        db, "update pipeline_training_jobs set hf_adapter_path = 'org/adapter', adapter_status = 'superseded',"
        " deployment_log = '[]', runpod_endpoint_id = 'e', status = 'completed' where id = %s", job_id,
    )  # fmt: skip
    job = pipeline.job(job_id)
    assert (job["hf_adapter_path"], job["adapter_status"], job["deployment_log"]) == ("org/adapter", "superseded", [])
    assert job["status"] == "completed"


def test_cancel_in_the_newer_queue_takes_effect(db: Database, pipeline: Pipeline) -> None:
    job_id, run = pipeline_run(db, pipeline, "running")
    through_the_api(
        db, "update pipeline_training_jobs set status = 'cancelled', completed_at = now() where id = %s", job_id
    )
    job = pipeline.job(job_id)
    assert (job["status"], job["completed_at"] is not None, job["runpod_job_id"]) == ("cancelled", True, "ours")
    (news,) = db.call("renew_training_runs", [{"run_id": str(run["id"]), "lease_token": str(run["lease_token"])}], 60)
    assert news["cancel_requested"]


# ── the page ────────────────────────────────────────────────────────────────────────────────────────


def test_documented_statements_hand_over_the_old_dispatchers_jobs(db: Database, pipeline: Pipeline) -> None:
    shown, handed_over, handed_over_newer = sql_of_page("switching.md")
    ours, (left, ended) = db.running_run()[0], db.jobs(2)
    db.rows(
        "update training_jobs set status = 'running', external_job_id = 'theirs', started_at = now(),"
        " current_cost = 'NaN' where id = %s", left,
    )  # fmt: skip
    db.rows("update training_jobs set status = 'completed' where id = %s", ended)
    our_newer, _ = pipeline_run(db, pipeline, "running")
    user = db.user()
    hangs = pipeline.queue(user_id=user, dataset_id=db.dataset(user), status="initializing", runpod_job_id="theirs")
    assert [row["id"] for row in db.rows(shown)] == [left]
    before = db.job(ours["job_id"]), db.job(ended), pipeline.job(our_newer)
    db.rows(handed_over)
    db.rows(handed_over_newer)
    assert (db.job(ours["job_id"]), db.job(ended), pipeline.job(our_newer)) == before
    assert {given["job"]["id"] for given in db.claim(max_jobs=9)} == {str(left), str(hangs)}
    job = db.job(left)
    assert (job["external_job_id"], job["started_at"], job["current_cost"]) == (None, None, 0)
    assert db.rows(shown) == []
