"""Jobs, runs and a queue as the database tells of them, and a fake of what the operator's commands call."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from lora_worker.database.job_reports import DrainedWorker, JobDetails, JobEntry, JobFilter, JobPage, RetryAnswer
from lora_worker.database.queue_health import QueueHealth
from lora_worker.database.submission_rows import FoundUser
from lora_worker.errors import ServiceUnavailableError
from tests.unit.worker.runs.comparisons import APPLICATION, compared, evaluated

JOB, OTHER = UUID("0f5f8e0a-1111-4222-8333-444455556666"), UUID("0f5f0000-1111-4222-8333-444455556666")
USER = UUID("aaaaaaaa-1111-4222-8333-444455556666")
MAIL = "user@example.com"
RUN = UUID("bbbbbbbb-1111-4222-8333-444455556666")

HOSTILE = "[bold red]Zebras[/]\x1b[2J\x1b]0;owned\x07\u202egnp"
"""A name with rich's markup, escape sequences that clear the terminal and rename it, and reversed writing."""
SHOWN = "[bold red]Zebras[/]\ufffd[2J\ufffd]0;owned\ufffd\ufffdgnp"
"""How it is printed."""


def job_entry(job_id: UUID = JOB, **columns: Any) -> JobEntry:
    entry: dict[str, Any] = {
        "job_id": str(job_id), "queue": "training_jobs", "user_id": str(USER), "name": HOSTILE, "status": "running",
        "stage": "training", "progress": 62.5, "current_step": 40, "total_steps": 80,
        "base_model": "Qwen/Qwen2.5-0.5B-Instruct", "created_at": "2026-11-26T12:00:00+00:00",
        "started_at": "2026-11-26T12:02:00+00:00", "completed_at": None,
        "estimated_completion_at": "2026-11-26T12:20:00+00:00", "current_cost": 0.31, "final_cost": None,
        "error_code": None, "error_message": None, "waits_for": None, "retry_count": 0, "run_id": str(RUN),
        "attempt": 1,
    }  # fmt: skip
    return TypeAdapter(JobEntry).validate_python({**entry, **columns})


STAGES = [
    ("queue", 4.0), ("launch", 1.5), ("cold_start", 61.0), ("setup", 3.0), ("downloading", 12.0),
    ("loading_model", 30.0), ("training", 610.0),
]  # fmt: skip


def details(job_id: UUID = JOB, *, steps: int = 40, **columns: Any) -> JobDetails:
    began = "2026-11-26T12:00:00+00:00"
    run = {
        "run_id": str(RUN), "attempt": 1, "status": "running", "worker": "w-0123abcd", "endpoint": "https://e/v2/ep",
        "launcher": "runpod", "external_job_id": "rp-1", "created_at": began, "launched_at": began,
        "checked_in_at": began, "last_seen_at": began, "ended_at": None, "next_attempt_at": None, "stage": "training",
        "current_step": steps, "total_steps": 80, "gpu_type": "NVIDIA A100 80GB PCIe", "price_per_hour": 2.72,
        "gpu_seconds": None, "fault": None, "error_code": None, "error_message": None, "problem": None,
        "stages": [{"stage": stage, "begun_at": began, "seconds": seconds} for stage, seconds in STAGES],
    }  # fmt: skip
    points = [
        {
            "step": step, "epoch": 1, "loss": 3.0 / step + 0.5, "validation_loss": 1.1 if step % 20 == 0 else None,
            "learning_rate": 1e-4, "gradient_norm": 0.5, "throughput": 2100.0, "gpu_utilization": 97.0, "at": began,
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip
    job = {
        **job_entry(job_id, **columns), "dataset_id": str(OTHER), "hyperparameters": {"epochs": 2},
        "gpu_config": {"type": "A100"}, "current_metrics": {"training_loss": 0.575, "throughput": 2100.0},
        "estimate": {"cost": {"low": 0.2, "high": 0.6}, "seconds": {"low": 300, "high": 900}}, "retried_at": None,
    }  # fmt: skip
    artifact = {
        "id": str(RUN), "name": HOSTILE, "version": "1.0.0", "status": "stored", "created_at": began,
        "deleted_at": None, "quality_metrics": {}, "training_summary": {}, "artifacts": {},
    }  # fmt: skip
    cost = {"run_id": str(RUN), "cost_type": "training_compute", "amount": 0.31, "recorded_at": began,
            "gpu_seconds": 410.0, "outcome": "succeeded"}  # fmt: skip
    return TypeAdapter(JobDetails).validate_python(
        {"job": job, "runs": [run], "points": points, "artifact": artifact, "measured": None, "costs": [cost]}
    )


MEASURED: dict[str, Any] = {
    "evaluation": evaluated(compared(), 1.25).model_dump(), "application": APPLICATION,
    "serving_name": "adapter-0f5f8e0a",
}  # fmt: skip


def completed_details() -> JobDetails:
    """A job that has completed, with what it has brought."""
    told = details(status="completed", final_cost=0.31)
    told["runs"][0] |= {"status": "succeeded"}  # type: ignore[typeddict-item]
    told["measured"] = MEASURED
    assert told["artifact"] is not None
    told["artifact"]["quality_metrics"] = {"overall_score": 5}
    return told


def queue_health(**columns: Any) -> QueueHealth:
    """A queue in which something of everything goes on."""
    live = {
        "run_id": str(RUN), "job_id": str(JOB), "user_id": str(USER), "attempt": 2, "status": "running",
        "stage": "waiting_for_gpu_provider", "base_model": "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        "progress": 62.5, "current_step": 40, "total_steps": 80, "current_cost": 12.31,
        "estimated_completion_at": None, "worker": "w-0123abcd", "lease_seconds_left": 55.0, "seen_seconds_ago": 8.0,
        "problem": "its log can't be read",
    }  # fmt: skip
    waiting = {
        "job_id": str(OTHER), "user_id": str(USER), "wait_seconds": 4000.0, "retry_count": 0,
        "waits_for": f"an operator, who holds all jobs: {HOSTILE} because the budget of this month is used up",
    }  # fmt: skip
    failed = {
        "job_id": str(OTHER), "run_id": str(RUN), "user_id": str(USER), "error_code": "out_of_memory",
        "error_message": f"{HOSTILE} The GPU has too little memory: choose a smaller batch.", "seconds_ago": 70.0,
    }  # fmt: skip
    worker = {"name": "a-rather-long-host-name.example.org-4711-0123abcd", "version": "0.2.0",
              "running_seconds": 90_000.0, "seen_seconds_ago": 12.0, "slots": 20, "held": 1, "problem": None,
              "single_pass": False, "draining": True}  # fmt: skip
    breaker = {"kind": "base_model", "name": "org/broken", "endpoint": "https://api.runpod.ai/v2/ep",
               "error_code": "model_unavailable", "error_message": "It is gone.", "users": 2, "probe_in_seconds": 300.0,
               "jobs": 3}  # fmt: skip
    told = {
        "queued": 1, "oldest_wait_seconds": 4000.0, "live_runs": 1, "expired_leases": 1, "stray_launches": 2,
        "spent_today": 3.5, "failed_today": 1, "failed": [failed], "no_worker": None, "had_worker": True,
        "workers": [worker], "endpoints": [{"launcher": "runpod", "endpoint": "https://e", "launches": 1}],
        "held": {
            "operator_holds": [{"user_id": None, "reason": HOSTILE, "held_seconds": 60.0}],
            "breakers": [breaker],
            "endpoint_problems": [{"endpoint": "https://e", "problem": "no GPU is free", "starting_seconds": 400.0}],
        },
        "runs": [live], "waiting": [waiting],
    }  # fmt: skip
    return TypeAdapter(QueueHealth).validate_python({**told, **columns})


class OperatorQueue:
    """Answers the operator's commands and records what they asked. `states` are the answers about a job, in order."""

    def __init__(self, *states: JobDetails | None, jobs: list[JobEntry] | None = None) -> None:
        self.states = list(states)
        self.jobs = [job_entry()] if jobs is None else jobs
        self.next_cursor: str | None = None
        self.asked: list[Any] = []
        self.failing: Exception | None = None
        self.health_now = queue_health()
        self.ended: set[UUID] = set()
        self.workers: list[DrainedWorker] = [{"name": "w-0123abcd", "held": 2, "single_pass": False}]
        self.looks = 0
        self.most_looks = 1_000

    async def list_training_jobs(self, wanted: JobFilter) -> JobPage:
        self.asked.append(wanted)
        if self.failing:
            raise self.failing
        prefix = wanted.get("id_prefix")
        found = [job for job in self.jobs if not prefix or job["job_id"].replace("-", "").startswith(prefix)]
        return {"jobs": found, "next_cursor": self.next_cursor}

    async def training_job_details(self, job_id: UUID) -> JobDetails | None:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def cancel_training_job(self, job_id: UUID) -> bool:
        self.asked.append(("cancel", job_id))
        return job_id not in self.ended

    async def retry_training_job(self, job_id: UUID) -> RetryAnswer:
        self.asked.append(("retry", job_id))
        reason = "the job is running" if job_id in self.ended else None
        return {"retried": reason is None, "reason": reason}

    async def find_training_user(self, named: str) -> FoundUser | None:
        return {"user_id": USER, "email": MAIL, "is_operator": False} if named == MAIL else None

    async def hold_training(self, user_id: UUID | None, reason: str | None) -> bool:
        self.asked.append(("hold", user_id, reason))
        return True

    async def release_training(self, user_id: UUID | None) -> bool:
        self.asked.append(("release", user_id))
        return True

    async def resume_training(self, named: str | None) -> list[dict[str, Any]]:
        self.asked.append(("resume", named))
        return [{"kind": "base_model", "name": "org/broken", "endpoint": "https://e", "jobs": 3}]

    async def drain_training_workers(self, name: str | None) -> list[DrainedWorker]:
        self.asked.append(("drain", name))
        return [worker for worker in self.workers if name in {None, worker["name"]}]

    async def health(self) -> QueueHealth:
        self.looks += 1
        if self.looks > self.most_looks:
            raise ServiceUnavailableError("Supabase", "the test has seen enough")
        return self.health_now
