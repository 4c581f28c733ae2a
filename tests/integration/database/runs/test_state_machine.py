"""A random test of the whole life of jobs and runs of both queues, through the SQL functions.

Three workers claim, adopt, renew, report, settle and release; the application cancels; operators hold users and
start jobs again; trainers check in, also twice and late; leases expire; old tokens are used again. After every step the
invariants of the design must hold.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.application.pipeline import Pipeline
from tests.database.rows import Database, notice, outcome, point, report

LEAST_STEPS = 5_000
EXAMPLES, STEPS_EACH = 120, 60
TERMINAL = {"completed", "failed", "cancelled"}
WORKERS = st.sampled_from(["w1", "w2", "w3"])
PICK = st.integers(min_value=0, max_value=10_000)


@pytest.fixture(scope="module")
def shared(postgres: Any, database_template: str) -> Iterator[Database]:
    with postgres.clone(database_template) as url:
        made = Database(url)
        Pipeline(made).create()
        yield made
        made.close()


class Life(RuleBasedStateMachine):
    """The events that can happen to three users' jobs."""

    db: Database
    steps = 0

    @initialize()
    def begin(self) -> None:
        self.db.rows(
            "truncate auth.users, training_runs, training_launches, training_operator_holds, training_retries,"
            " deploy_webhook_calls, pipeline_history cascade"
        )
        self.users = [self.db.user() for _ in range(2)]
        self.leases: list[tuple[str, str]] = []
        """Every (run, token) that was ever issued, including stale ones."""
        self.tokens: dict[str, str] = {}
        self.executions: list[tuple[str, str, str]] = []
        self.ended_jobs: dict[str, str] = {}
        self.ended_runs: dict[str, str] = {}
        self.counters: dict[str, tuple[int, ...]] = {}
        self.retries: Counter[str] = Counter()
        self.held: set[str | None] = set()

    def _take(self, assignments: list[dict[str, Any]]) -> None:
        for assignment in assignments:
            lease = (assignment["run"]["id"], assignment["run"]["lease_token"])
            assert lease[1] not in {token for _, token in self.leases}, "a lease token was used again"
            self.leases.append(lease)

    def _lease(self, pick: int) -> dict[str, Any] | None:
        if not self.leases:
            return None
        run_id, token = self.leases[pick % len(self.leases)]
        return {"id": run_id, "lease_token": token}

    @rule(pick=PICK, newer=st.booleans())
    def queue(self, pick: int, newer: bool) -> None:
        user = self.users[pick % 2]
        if newer:
            Pipeline(self.db).queue(user_id=user, dataset_id=self.db.dataset(user))
        else:
            self.db.jobs(1, user)

    @rule(worker=WORKERS, count=st.integers(1, 3), limit=st.sampled_from([None, 1, 2]))
    def claim(self, worker: str, count: int, limit: int | None) -> None:
        claimed = self.db.claim(worker, count, limit)
        self._take(claimed)
        owners = {assignment["run"]["user_id"] for assignment in claimed}
        assert not owners or None not in self.held, "a job was claimed while all are held"
        assert not owners & self.held, "a job of a held user was claimed"

    @rule(pick=st.sampled_from([0, 1, None]), holds=st.booleans())
    def hold(self, pick: int | None, holds: bool) -> None:
        user = None if pick is None else str(self.users[pick])
        if holds:
            self.db.call("hold_training", user, "held")
            self.held.add(user)
        else:
            assert self.db.call("release_training", user) is (user in self.held)
            self.held.discard(user)

    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        jobs = [job for job in self._jobs() if job["status"] in TERMINAL]
        if not jobs:
            return
        chosen = jobs[pick % len(jobs)]
        job_id = str(chosen["id"])
        answer = self.db.call("retry_training_job", job_id)
        assert not (answer["retried"] and chosen["status"] == "completed"), "a completed job was started again"
        if answer["retried"]:
            del self.ended_jobs[job_id]
            self.retries[job_id] += 1

    @rule(worker=WORKERS)
    def adopt(self, worker: str) -> None:
        self._take(self.db.call("adopt_training_runs", worker, 5, 60))

    @rule(pick=PICK)
    def expire(self, pick: int) -> None:
        if lease := self._lease(pick):
            self.db.expire(lease["id"])

    @rule(worker=WORKERS)
    def release(self, worker: str) -> None:
        self.db.call("release_training_runs", worker)

    @rule()
    def renew(self) -> None:
        leases = [{"run_id": run, "lease_token": token} for run, token in self.leases[-20:]]
        self.db.call("renew_training_runs", leases, 60)

    @rule(pick=PICK)
    def launch(self, pick: int) -> None:
        lease = self._lease(pick)
        if lease is None:
            return
        token = self.tokens.setdefault(lease["id"], uuid4().hex * 2)
        if self.db.begin(lease, token)["may_launch"]:
            self.db.call("record_launch", lease["id"], lease["lease_token"], "runpod", uuid4().hex)

    @rule(pick=PICK, same=st.booleans(), again=st.booleans())
    def check_in(self, pick: int, same: bool, again: bool) -> None:
        if not self.tokens:
            return
        run_id = sorted(self.tokens)[pick % len(self.tokens)]
        known = [e for e in self.executions if e[0] == run_id]
        external = known[-1][1] if same and known else uuid4().hex
        execution = known[0][2] if again and known else str(uuid4())
        answer = self.db.call("check_in_run", self.tokens[run_id], external, execution)
        if answer["may_train"]:
            self.executions.append((run_id, external, execution))
            owner = self.db.run(run_id)
            assert (owner["external_job_id"], str(owner["execution_id"])) == (external, execution)

    @rule(pick=PICK, step=st.integers(1, 40))
    def progress(self, pick: int, step: int) -> None:
        if lease := self._lease(pick):
            columns = {"progress": 2 * step, "current_step": step, "current_stage": "training"}
            job_id = self.db.run(lease["id"])["job_id"]
            started = [notice("job_started", job_id, started_again=self.retries[str(job_id)])]
            sent = report(lease, [point(s) for s in range(1, step + 1)], **columns) | {"notices": started}
            self.db.call("record_progress", [sent])

    @rule(pick=PICK, how=st.sampled_from(["completed", "failed", "cancelled", "queued"]))
    def settle(self, pick: int, how: str) -> None:
        if lease := self._lease(pick):
            job_id = self.db.run(lease["id"])["job_id"]
            kind = {"queued": "job_requeued"}.get(how, f"job_{how}")
            notices = [notice(kind, job_id, run_id=lease["id"])]
            ended = outcome(how, notices=notices, retry_after_seconds=0)
            if how == "completed":
                ended["artifact"]["archive"] = f"lora-models/adapters/{job_id}.tar.gz"
            self.db.call("settle_run", lease["id"], lease["lease_token"], ended)

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        jobs = [job for job in self._jobs() if job["status"] not in TERMINAL]
        if jobs:
            chosen = jobs[pick % len(jobs)]
            if pick % 2:
                self.db.call("cancel_training_job", chosen["id"])
            else:
                self.db.rows(f"update {chosen['queue']} set status = 'cancelled' where id = %s", chosen["id"])

    @rule()
    def reconcile(self) -> None:
        strays = self.db.call("stray_launches", 10)
        self.db.call("close_launches", [{"external_job_id": s["external_job_id"], "gpu_seconds": 5} for s in strays])

    @invariant()
    def the_promises_hold(self) -> None:
        if not hasattr(self, "leases"):
            return
        Life.steps += 1
        self._check_jobs()
        self._check_runs()
        self._check_no_duplicates()

    def _jobs(self) -> list[dict[str, Any]]:
        return self.db.rows(
            "select 'training_jobs' as queue, id, status, retry_count from training_jobs"
            " union all select 'pipeline_training_jobs', id, status, 0 from pipeline_training_jobs order by 1, 2"
        )

    def _check_jobs(self) -> None:
        for job in self._jobs():
            job_id = str(job["id"])
            before = self.ended_jobs.get(job_id)
            assert before in {None, job["status"]}, f"a job went from {before} to {job['status']}"
            if job["status"] in TERMINAL:
                self.ended_jobs[job_id] = job["status"]
            self._grow(f"job {job_id}", (job["retry_count"],))
            live = self.db.rows(
                "select 1 from training_runs where job_id = %s and status in ('claimed', 'launched', 'running')", job_id
            )
            assert len(live) <= 1, "two live runs of one job"
            assert not (live and job["status"] in {"queued", "pending"}), "a job with a live run is queued"
            if job["status"] in {"initializing", "running"}:
                assert live, "a job that seems to run has no live run: it is lost"

    def _check_runs(self) -> None:
        for run in self.db.rows("select * from training_runs"):
            run_id = str(run["id"])
            if run_id in self.ended_runs:
                assert run["status"] == self.ended_runs[run_id], "a run changed after its end"
            if run["ended_at"] is not None:
                self.ended_runs[run_id] = run["status"]
            self._grow(
                f"run {run_id}", (run["current_step"], len(run["point_steps"]), len(run["former_execution_ids"]))
            )

    def _grow(self, name: str, values: tuple[int, ...]) -> None:
        before = self.counters.get(name, values)
        assert all(new >= old for old, new in zip(before, values, strict=True)), f"{name} went back: {before} {values}"
        self.counters[name] = values

    def _check_no_duplicates(self) -> None:
        for query in (
            "select job_id, step from metrics_points group by 1, 2 having count(*) > 1",
            "select details->>'run_id' from cost_records group by 1 having count(*) > 1",
            "select job_id from model_artifacts group by 1 having count(*) > 1",
            "select user_id, type, metadata->>'job_id', metadata->>'run_id', metadata->>'started_again'"
            " from notifications group by 1, 2, 3, 4, 5 having count(*) > 1",
            "select id from training_jobs where status = 'completed' and artifact_id is null",
            "select job_id, step_number, metric_id from pipeline_training_metrics group by 1, 2, 3 having count(*) > 1",
            "select job_id from deploy_webhook_calls group by 1 having count(*) > 1",
            "select id from pipeline_training_jobs where status = 'completed' and id not in"
            " (select job_id from deploy_webhook_calls)",
        ):
            assert self.db.rows(query) == [], query


def test_every_order_of_events_keeps_the_invariants(shared: Database) -> None:
    Life.db, Life.steps = shared, 0
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS_EACH,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(json.dumps({"steps": Life.steps}))
    assert Life.steps >= LEAST_STEPS
