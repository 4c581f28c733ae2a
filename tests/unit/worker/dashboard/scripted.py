"""A database that answers as the test says, and a browser without pictures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_contract.evaluation import Sample
from lora_worker.dashboard.access import Access
from lora_worker.dashboard.app import make_app
from lora_worker.dashboard.board import Board
from lora_worker.dashboard.reads import SharedReads
from lora_worker.database.version_rows import AliasRow, VersionFilter, VersionRow
from lora_worker.errors import ArtifactError, ServiceUnavailableError
from tests.unit.worker.runs.comparisons import APPLICATION, compared, evaluated

Row = dict[str, Any]

NOW = datetime(2026, 11, 26, 14, 0, 0, tzinfo=UTC)
TOKEN = "t" * 43
URL = "http://127.0.0.1:8642"
SCRIPT = "<script>document.title = 'taken over'</script>"


def ago(**time: float) -> str:
    return (NOW - timedelta(**time)).isoformat()


def job(status: str = "running", **columns: Any) -> Row:
    """A row of `list_training_jobs`."""
    is_live = status in {"initializing", "running"}
    return {
        "job_id": str(uuid4()), "queue": "training_jobs", "user_id": str(uuid4()), "name": "Zebras", "status": status,
        "stage": "training" if is_live else status, "progress": 40 if is_live else 0, "current_step": 24,
        "total_steps": 60, "base_model": "sandbox/tiny-llama", "created_at": ago(minutes=9),
        "started_at": ago(minutes=8), "completed_at": None if is_live or status == "queued" else ago(minutes=1),
        "estimated_completion_at": None, "current_cost": 0.12, "final_cost": None, "error_code": None,
        "error_message": None, "waits_for": "a worker" if status == "queued" else None, "retry_count": 0,
        "run_id": None, "attempt": None, **columns,
    }  # fmt: skip


def run(**columns: Any) -> Row:
    """A run of `training_job_details`."""
    return {
        "run_id": str(uuid4()), "attempt": 1, "status": "running", "worker": "worker-1", "endpoint": "https://e/v2/x",
        "launcher": "runpod", "external_job_id": "abc-u1", "created_at": ago(minutes=8), "launched_at": ago(minutes=8),
        "checked_in_at": ago(minutes=7), "last_seen_at": ago(seconds=2), "ended_at": None, "next_attempt_at": None,
        "stage": "training", "current_step": 24, "total_steps": 60, "gpu_type": "H100", "price_per_hour": 3.0,
        "gpu_seconds": 300, "fault": None, "error_code": None, "error_message": None, "problem": None,
        "stages": [
            {"stage": "queue", "begun_at": ago(minutes=9), "seconds": 60},
            {"stage": "launch", "begun_at": ago(minutes=8), "seconds": 1},
            {"stage": "cold_start", "begun_at": ago(minutes=7.9), "seconds": 40},
            {"stage": "loading_model", "begun_at": ago(minutes=7), "seconds": 60},
            {"stage": "training", "begun_at": ago(minutes=6), "seconds": 360},
        ], **columns,
    }  # fmt: skip


def points(steps: int = 24) -> list[Row]:
    return [
        {"step": step, "epoch": 1, "loss": 1 + 3 / step, "validation_loss": 1.3 + 3 / step if step % 8 == 0 else None,
         "learning_rate": 1e-4, "gradient_norm": 1.0, "throughput": 1000.0, "gpu_utilization": None, "at": None}
        for step in range(1, steps + 1)
    ]  # fmt: skip


def details(row: Row, **parts: Any) -> Row:
    """An answer of `training_job_details`."""
    more = {"dataset_id": None, "hyperparameters": {"epochs": 3}, "gpu_config": None, "current_metrics": None,
            "estimate": None, "retried_at": None}  # fmt: skip
    return {
        "job": {**more, **row},
        "runs": [run()],
        "points": points(),
        "artifact": None,
        "measured": None,
        "costs": [],
        **parts,
    }


def completed(**parts: Any) -> Row:
    """Parts of `training_job_details` of a job that has completed, with what it has brought."""
    measured = {"evaluation": evaluated(compared(), 1.25).model_dump(), "application": APPLICATION,
                "serving_name": "adapter-0f5f8e0a"}  # fmt: skip
    return {"runs": [run(status="succeeded", ended_at=ago(minutes=1))], "measured": measured, **parts}


def sample(text: str, messages: int = 1) -> Sample:
    """A prompt with its answers, the same text in each part."""
    prompt = [{"role": text, "content": f"{text} {number}"} for number in range(messages)]
    return Sample.model_validate({"prompt": prompt, "reference": text, "base": text, "tuned": text, "held_out": True})


def health(**columns: Any) -> Row:
    """An answer of `queue_health`."""
    return {
        "queued": 0, "oldest_wait_seconds": None, "live_runs": 0, "expired_leases": 0, "stray_launches": 0,
        "spent_today": 1.5, "failed_today": 0, "failed": [], "no_worker": None, "had_worker": True,
        "workers": [worker()], "endpoints": [], "runs": [], "waiting": [],
        "held": {"operator_holds": [], "breakers": [], "endpoint_problems": []}, **columns,
    }  # fmt: skip


def worker(**columns: Any) -> Row:
    return {
        "name": "worker-1", "version": "0.2.0", "running_seconds": 7200, "seen_seconds_ago": 3, "slots": 20, "held": 1,
        "max_per_user": 3, "problem": None, "single_pass": False, "draining": False, **columns,
    }  # fmt: skip


class ScriptedDatabase:
    """The calls of the dashboard. `calls` notes each, `fault` fails all of them."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fault: Exception | None = None
        self.state = health()
        self.rows: list[Row] = []
        self.jobs: dict[str, Row] = {}
        self.costs: list[Row] = []
        self.failures: list[Row] = []
        self.budgets: Row = {"day": {"usd_per_day": None, "spent": 0, "live": 0}, "each_user": None, "budgets": []}
        self.logs: dict[str, list[str]] = {}
        self.answers: dict[str, list[Sample] | str] = {}
        self.refusal: str | None = None
        self.versions: list[VersionRow] = []
        self.aliases: list[AliasRow] = []

    async def training_versions(self, wanted: VersionFilter) -> list[VersionRow]:
        self._note("training_versions", wanted)
        return self.versions

    async def list_training_aliases(self) -> list[AliasRow]:
        self._note("list_training_aliases")
        return self.aliases

    def add(self, row: Row, **parts: Any) -> str:
        """Add a job; returns its id."""
        self.rows.append(row)
        self.jobs[row["job_id"]] = details(row, **parts)
        return str(row["job_id"])

    def go_down(self) -> None:
        self.fault = ServiceUnavailableError("db", "Supabase's database is not reachable: connection refused")

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.fault is not None:
            raise self.fault

    async def health(self) -> Row:
        self._note("health")
        return self.state

    async def list_training_jobs(self, wanted: Row) -> Row:
        self._note("list_training_jobs", wanted)
        found = [row for row in self.rows if row["status"] in (wanted.get("statuses") or [row["status"]])]
        return {"jobs": found[: wanted["limit"]], "next_cursor": "a|b" if len(found) > wanted["limit"] else None}

    async def training_job_details(self, job_id: UUID) -> Row | None:
        self._note("training_job_details", job_id)
        return self.jobs.get(str(job_id))

    async def cancel_training_job(self, job_id: UUID) -> bool:
        self._note("cancel_training_job", job_id)
        return self.refusal is None

    async def retry_training_job(self, job_id: UUID) -> Row:
        self._note("retry_training_job", job_id)
        return {"retried": self.refusal is None, "reason": self.refusal}

    async def hold_training(self, user_id: UUID | None, reason: str | None) -> bool:
        self._note("hold_training", user_id, reason)
        return True

    async def release_training(self, user_id: UUID | None) -> bool:
        self._note("release_training", user_id)
        return True

    async def resume_training(self, named: str | None) -> list[Row]:
        self._note("resume_training", named)
        return [] if self.refusal else [{"kind": "image", "name": "", "endpoint": "e", "jobs": 1}]

    async def training_costs(self, since: datetime, until: datetime, by: str) -> list[Row]:
        self._note("training_costs", since, by)
        return self.costs

    async def training_budget_state(self) -> Row:
        self._note("training_budget_state")
        return self.budgets

    async def read(self, user_id: UUID, run_id: UUID) -> list[str] | None:
        """Read a kept log, as the storage does."""
        self._note("read", str(user_id), str(run_id))
        return self.logs.get(str(run_id))

    async def samples(self, user_id: UUID, run_id: UUID) -> list[Sample] | None:
        """Read the answers of base and adapter, as the storage does."""
        self._note("samples", str(user_id), str(run_id))
        found = self.answers.get(str(run_id))
        if isinstance(found, str):
            raise ArtifactError(found)
        return found

    async def training_failures(self, since: datetime) -> list[Row]:
        self._note("training_failures", since)
        return self.failures


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def make_page(database: ScriptedDatabase, clock: Clock, *names: str) -> Starlette:
    reads = SharedReads(clock=clock, now=lambda: NOW)
    return make_app(Board(database, database, database, reads, now=lambda: NOW), Access(TOKEN, 8642), names)


def stranger(app: Starlette, url: str = URL) -> TestClient:
    """A browser without a session."""
    return TestClient(app, base_url=url, follow_redirects=False, raise_server_exceptions=False)


def signed_in(app: Starlette) -> TestClient:
    """A browser that has opened the URL with the token."""
    browser = stranger(app)
    assert browser.get(f"/?token={TOKEN}").status_code == 200
    return browser
