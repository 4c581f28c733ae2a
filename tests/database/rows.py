"""Rows as the application inserts them, and database functions as the worker calls them, directly in SQL."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

Row = dict[str, Any]


H100 = {"dataset_id": None, "gpu_type": "H100", "gpu_count": 1, "price_per_hour": 4.18, "max_cost": 100}
"""The rate with which these tests launch runs; without a dataset, so that the job's own counts."""


class Database:
    """One superuser connection in autocommit mode, and what tests do through it."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def rows(self, query: str, *values: Any) -> list[Row]:
        cursor = self.connection.execute(query, values or None)
        # A query may select no column: its rows count all the same.
        return cursor.fetchall() if cursor.description is not None else []

    def row(self, query: str, *values: Any) -> Row:
        (found,) = self.rows(query, *values)
        return found

    def call(self, function: str, *arguments: Any) -> Any:
        """The answer of one of the worker's functions."""
        marks = ", ".join("%s" for _ in arguments)
        values = [json.dumps(a) if isinstance(a, dict | list) else a for a in arguments]
        return self.row(f"select public.{function}({marks}) as answer", *values)["answer"]

    def pages(self, call: str, *values: Any) -> int:
        """How many pages of the database a call reads, from the cache or the disk."""
        (plan,) = self.row(f"explain (analyze, buffers, format json) select {call}", *values)["QUERY PLAN"]
        return int(plan["Plan"]["Shared Hit Blocks"]) + int(plan["Plan"]["Shared Read Blocks"])

    def user(self) -> UUID:
        return self.row("insert into auth.users (id) values (gen_random_uuid()) returning id")["id"]

    def dataset(self, user: UUID) -> UUID:
        return self.row(
            "insert into datasets (user_id, name, storage_path, file_name, file_size, status, training_ready)"
            " values (%s, 'Zebras', %s, 'data.jsonl', 1, 'ready', true) returning id", user, str(uuid4()),
        )["id"]  # fmt: skip

    def jobs(self, count: int = 1, user: UUID | None = None) -> list[UUID]:
        """Queue so many jobs of one user, a second apart."""
        owner = user or self.user()
        made = self.rows(
            "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
            " estimated_total_cost, created_at)"
            " select %s, %s, 'fast', '{\"epochs\": 2}', '{\"type\": \"H100\", \"count\": 1}', 2, 1,"
            " now() - interval '1 day' + n * interval '1 second' from generate_series(1, %s) n returning id",
            owner, self.dataset(owner), count,
        )  # fmt: skip
        return [row["id"] for row in made]

    def job(self, job_id: UUID) -> Row:
        return self.row("select * from training_jobs where id = %s", job_id)

    def run(self, run_id: str | UUID) -> Row:
        return self.row("select * from training_runs where id = %s", run_id)

    def claim(self, worker: str = "w1", max_jobs: int = 1, max_per_user: int | None = None) -> list[Row]:
        return self.call("claim_training_jobs_2", worker, max_jobs, 60, max_per_user)

    def claimed_run(self, worker: str = "w1") -> Row:
        """Queue a job and claim it; returns its run."""
        self.jobs()
        return self.claim(worker)[0]["run"]

    def launched_run(self, external_job_id: str | None = None) -> tuple[Row, str]:
        """Claim and launch a run; returns it and its token."""
        run, token = self.claimed_run(), uuid4().hex + uuid4().hex
        assert self.begin(run, token)["may_launch"]
        assert self.call("record_launch", run["id"], run["lease_token"], "runpod", external_job_id or uuid4().hex)
        return self.run(run["id"]), token

    def running_run(self) -> tuple[Row, str, str]:
        """Launch a run and check its trainer in; returns the run, its token and its execution id."""
        run, token = self.launched_run()
        execution = str(uuid4())
        assert self.call("check_in_run", token, run["external_job_id"], execution)["may_train"]
        return self.run(run["id"]), token, execution

    def begin(self, run: Row, token: str, endpoint: str | None = None) -> Row:
        """Begin a launch and date it an hour back, since a run is billed for no more than the time since its launch."""
        sha256 = hashlib.sha256(token.encode()).hexdigest()
        answer = self.call("begin_launch", run["id"], run["lease_token"], "runpod", sha256, H100, endpoint)
        if answer["may_launch"]:
            self.worked(run)
        return answer

    def worked(self, run: Row, seconds: float = 3600) -> None:
        """Date the run's launches so many seconds back."""
        moved = "update training_launches set posted_at = posted_at - make_interval(secs => %s) where run_id = %s"
        self.rows(moved, seconds, run["id"])

    def expire(self, run_id: str | UUID) -> None:
        """Make the run's lease expire."""
        self.rows("update training_runs set lease_expires_at = now() - interval '1 second' where id = %s", run_id)

    def settle(self, run: Row, job_status: str = "completed", **more: Any) -> str | None:
        return self.call("settle_run_2", run["id"], run["lease_token"], outcome(job_status, **more))

    def snapshot(self) -> str:
        """Every row that a run can change, to compare before and after."""
        tables = ("training_jobs", "training_runs", "training_launches", "metrics_points", "model_artifacts",
                  "cost_records", "notifications")  # fmt: skip
        return json.dumps([self.rows(f"select * from {table}") for table in tables], default=str)

    def close(self) -> None:
        self.connection.close()


def outcome(job_status: str = "completed", **more: Any) -> Row:
    """An outcome as `lora_worker.runs.steps.settling` makes it."""
    artifact = {
        "name": "Zebras - 2026-01-01", "quality_metrics": {}, "training_summary": {},
        "configuration": {}, "artifacts": {},
    }  # fmt: skip
    run_status = {"completed": "succeeded", "queued": "failed"}.get(job_status, job_status)
    return {
        "run_status": run_status,
        "job_status": job_status,
        "fault": None if job_status == "completed" else "transient",
        "error_message": "It broke." if job_status in {"failed", "queued"} else None,
        "retry_after_seconds": 60,
        "waiting_stage": "retry_after_test",
        "gpu_seconds": 360,
        "launcher_ended": True,
        "points": [],
        "artifact": artifact if job_status == "completed" else None,
        "notices": [],
        "notices_if_cancelled": [],
        **more,
    }


def point(step: int) -> Row:
    """A metric point's row as `lora_worker.runs.rows.report_rows` makes it."""
    return {"step": step, "epoch": 1, "training_loss": 1.5, "learning_rate": 0.0001}


def report(run: Row, points: list[Row] | None = None, **columns: Any) -> Row:
    """A progress report as the worker sends it."""
    return {"run_id": str(run["id"]), "lease_token": str(run["lease_token"]), "job": columns, "points": points or []}


def notice(kind: str, job_id: Any, **metadata: Any) -> Row:
    """A notice as `lora_worker.runs.rows.notices` makes it."""
    return {
        "type": kind, "title": kind, "message": kind, "priority": "low", "action_url": "/",
        "metadata": {"job_id": str(job_id), **metadata},
    }  # fmt: skip
