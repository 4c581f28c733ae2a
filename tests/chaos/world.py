"""The servers of a chaos run: one Supabase, one cloud, one crew of `lora-worker`s."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import certifi
from psycopg.rows import dict_row

from sandbox.errors import ChildFailedError
from sandbox.processes import remove_folder, temporary_folder
from sandbox.runpod import LocalRunPod
from sandbox.standin import read_steps, standin_env
from sandbox.supabase import LocalSupabase
from tests.chaos.clouds.base import Cloud
from tests.chaos.clouds.runpod import RunPodCloud
from tests.chaos.crew import ROOT, Crew
from tests.chaos.verdict import Evidence

BASE_MODEL = "standin"
LEASE_SECONDS = 5
DOUBT_SECONDS = 4
LOST_SECONDS = 6
STEP_SECONDS = 0.05
REQUEST_TIMEOUT_SECONDS = 3

_DATASET = b'{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you."}]}\n'
_SETTINGS = {
    "LORA_WORKER_POLL_SECONDS": "0.5",
    "LORA_WORKER_LEASE_SECONDS": str(LEASE_SECONDS),
    "LORA_WORKER_DOUBT_SECONDS": str(DOUBT_SECONDS),
    "LORA_WORKER_LOST_SECONDS": str(LOST_SECONDS),
    "LORA_WORKER_RETRY_BASE_SECONDS": "0.5",
    "LORA_WORKER_RETRY_MAX_SECONDS": "3",
    # Jobs that die before their check-in for two users are held; here that is the fault's doing and passes.
    "LORA_WORKER_HOLD_SECONDS": "1",
    "LORA_WORKER_REQUEST_TIMEOUT_SECONDS": str(REQUEST_TIMEOUT_SECONDS),
    "LORA_WORKER_SLOTS": "30",
    "LORA_WORKER_MAX_PER_USER": "60",
    "LORA_WORKER_BASE_MODELS": BASE_MODEL,
    "LORA_WORKER_DEFAULT_BASE_MODEL": BASE_MODEL,
    "LORA_WORKER_MAX_INFRASTRUCTURE_FAILURES": "3",
    "LORA_WORKER_LOG_FORMAT": "json",
    "LORA_WORKER_VALIDATE_DATASETS": "false",
}


# Less often than the stand-in's default, since each call takes as long as a training step.
_TRAINER = {
    "LORA_TRAINER_HEARTBEAT_SECONDS": "1",
    "LORA_TRAINER_PROGRESS_SECONDS": "0.5",
    "LORA_TRAINER_GRANT_POLL_SECONDS": "0.6",
}

_UNFINISHED = (
    "from training_jobs j where id = any(%s::uuid[]) and ("
    " status not in ('completed', 'failed', 'cancelled') or exists ("
    " select from training_runs r where r.job_id = j.id and r.status in ('claimed', 'launched', 'running')))"
)


@dataclass(frozen=True)
class Plan:
    """A job to be queued: its number of steps, its mishap, and how it may end."""

    steps: int
    seed: int = 1
    ends: frozenset[str] = frozenset({"completed"})
    dataset_name: str = "chaos"


class _Platform(threading.Thread):
    """Restarts REST whenever it has ended or hangs, as a platform's supervisor does.

    The lightweight Supabase does either when it loses a busy connection to Postgres; PostgREST would not.
    """

    def __init__(self, supabase: LocalSupabase) -> None:
        super().__init__(name="platform", daemon=True)
        self._supabase = supabase
        self._closing = threading.Event()

    def run(self) -> None:
        """Check a few times a second whether it runs, and every few seconds whether it answers."""
        for look in itertools.count():
            if self._closing.wait(0.2):
                return
            # It can't start while Postgres is down: the next check tries again.
            with suppress(ChildFailedError):
                self._supabase.revive_rest()
                if look % 15 == 0 and self._supabase.rest_hangs():
                    self._supabase.restart_rest()

    def close(self) -> None:
        """Stop checking."""
        self._closing.set()
        self.join()


@dataclass
class World:
    """All servers of a run; `jobs` and `dump` return the records."""

    supabase: LocalSupabase
    cloud: Cloud
    crew: Crew
    folder: Path
    _users: list[str]
    _datasets: dict[str, str] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    @classmethod
    def start(
        cls,
        *,
        gpus: int,
        cloud: type[Cloud] = RunPodCloud,
        workers: int = 2,
        env: Mapping[str, str] | None = None,
    ) -> Self:
        """Start everything and wait until it is warm; `env` is set in all processes under test."""
        with ExitStack() as stack:
            folder = temporary_folder()
            stack.callback(remove_folder, folder)
            # Nothing here uses TLS, but httpx loads 140 root certificates for every client, which takes 35 ms.
            certificate = folder / "certificate.pem"
            certificate.write_text(_first_certificate())
            shared = {"SSL_CERT_FILE": str(certificate), **(env or {})}
            supabase = stack.enter_context(LocalSupabase.start(ROOT / ".sandbox"))
            platform = _Platform(supabase)
            platform.start()
            stack.callback(platform.close)
            (folder / "volume").mkdir()
            trainer = {**standin_env(folder / "volume", step_seconds=STEP_SECONDS), **_TRAINER, **shared}
            opened = cloud(stack, folder, gpus=gpus, env=trainer)
            crew = Crew(
                folder,
                {
                    **_SETTINGS,
                    **shared,
                    "SUPABASE_URL": supabase.url,
                    "SUPABASE_SERVICE_ROLE_KEY": supabase.secret_key,
                    "SUPABASE_PUBLISHABLE_KEY": supabase.publishable_key,
                    **opened.environment,
                },
                opened.worker_module,
            )
            stack.callback(crew.close)
            world = cls(supabase, opened, crew, folder, [])
            world._users += [world.new_user() for _ in range(3)]
            opened.warm_up()
            world.restore(workers)
            world._stack = stack.pop_all()
            return world

    @property
    def runpod(self) -> LocalRunPod:
        """The RunPod of a world that launches there."""
        assert isinstance(self.cloud, RunPodCloud)
        return self.cloud.runpod

    def restore(self, workers: int) -> None:
        """Have so many healthy workers and no armed fault."""
        self.cloud.faults.clear()
        self.crew.keep(workers)
        self.crew.await_start()

    def keep_logs(self, folder: Path) -> None:
        """Copy the logs of workers and trainers, and the cloud's ledger, to where `close` does not delete them."""
        folder.mkdir(parents=True, exist_ok=True)
        for log in self.folder.glob("*.log"):
            shutil.copy(log, folder)
        self.cloud.keep_logs(folder)
        for table in ("training_jobs", "training_runs", "training_launches"):
            rows = self.query(f"select * from {table}")
            (folder / f"{table}.json").write_text(json.dumps(rows, indent=1, default=str))

    def close(self) -> None:
        """End every process and remove the files."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── the application's side ──────────────────────────────────────────────────────────────────────

    def new_user(self) -> str:
        """One more user; the id."""
        return self.supabase.create_user(f"{uuid4()}@example.com")

    def queue(self, plans: Sequence[Plan], user_id: str | None = None) -> list[str]:
        """Queue jobs as the application does, of one user or of all in turn; their ids."""
        users = itertools.cycle([user_id] if user_id else self._users)
        rows = [
            (
                str(uuid4()),
                user,
                self._dataset(user, plan.dataset_name),
                json.dumps(
                    {
                        "base_model": BASE_MODEL,
                        "epochs": 1,
                        "batch_size": 4,
                        "rank": 8,
                        "learning_rate": 1e-4,
                        "max_steps": plan.steps,
                        "seed": plan.seed,
                    }
                ),
            )
            for user, plan in zip(users, plans, strict=False)
        ]
        with self.supabase.postgres.connect() as connection, connection.cursor() as cursor:
            cursor.executemany(
                "insert into training_jobs (id, user_id, dataset_id, preset_id, hyperparameters, gpu_config,"
                " total_epochs, estimated_total_cost)"
                """ values (%s, %s, %s, 'custom', %s, '{"type": "A100-80GB", "count": 1}', 1, 1)""",
                rows,
            )
        return [row[0] for row in rows]

    def cancel(self, job_id: str) -> bool:
        """Cancel as the application does; returns whether the job could still be cancelled."""
        return bool(
            self.query(
                "update training_jobs set status = 'cancelled', completed_at = now()"
                " where id = %s and status in ('queued', 'initializing', 'running') returning id",
                job_id,
            )
        )

    def _dataset(self, user: str, name: str) -> str:
        if (user, name) not in self._datasets:
            path = f"{user}/{name}.jsonl"
            with self.supabase.client() as client:
                client.post(
                    f"/storage/v1/object/lora-datasets/{path}",
                    content=_DATASET * 20,
                    headers={"content-type": "application/x-jsonlines"},
                ).raise_for_status()
            (row,) = self.query(
                "insert into datasets (user_id, name, storage_path, file_name, file_size, status, training_ready)"
                " values (%s, %s, %s, 'data.jsonl', %s, 'ready', true) returning id::text",
                user,
                name,
                path,
                len(_DATASET) * 20,
            )
            self._datasets[user, name] = row["id"]
        return self._datasets[user, name]

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────

    def query(self, statement: str, *arguments: Any) -> list[dict[str, Any]]:
        """Rows of the database, over a connection of its own: a fault may have ended any other."""
        with self.supabase.postgres.connect() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            cursor.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []

    def count(self, statement: str, *arguments: Any) -> int:
        """The one number that a statement answers."""
        (row,) = self.query(statement, *arguments)
        return int(next(iter(row.values())))

    def unfinished(self, job_ids: Sequence[str]) -> int:
        """How many of the jobs have not ended, or still have a live run."""
        return self.count(f"select count(*) {_UNFINISHED}", list(job_ids))

    def unended(self, job_ids: Sequence[str]) -> str:
        """The first few of these jobs in words, for the message of a time-out."""
        rows = self.query(f"select id::text, status, current_stage {_UNFINISHED} limit 5", list(job_ids))
        named = [f"{row['id'][:8]} is {row['status']} in {row['current_stage']}" for row in rows]
        return f"of {self.unfinished(job_ids)}: {'; '.join(named)}"

    def manifests(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The live runs of the jobs whose manifest lies in the storage: run id to RunPod's job id."""
        rows = self.query(
            "select r.id::text as run_id, r.external_job_id from training_runs r join storage.objects o"
            " on o.name in ('uploads/' || r.id || '/manifest.json', r.user_id || '/' || r.id || '/manifest.json')"
            " where r.job_id = any(%s::uuid[]) and r.status = 'running'",
            list(job_ids),
        )
        return {row["run_id"]: row["external_job_id"] for row in rows}

    def dump(self, job_ids: Sequence[str]) -> Evidence:
        """All records of these jobs."""
        ids = list(job_ids)
        runs = self.query(
            "select id::text, job_id::text, status from training_runs where job_id = any(%s::uuid[])", ids
        )
        own = {run["id"] for run in runs}
        return Evidence(
            jobs=self.query(
                "select id::text, status, artifact_id::text, final_cost, error_message from training_jobs"
                " where id = any(%s::uuid[])",
                ids,
            ),
            runs=runs,
            points=self.query(
                "select job_id::text, step, count(*) as times from metrics_points where job_id = any(%s::uuid[])"
                " group by job_id, step",
                ids,
            ),
            artifacts=self.query(
                "select id::text, job_id::text from model_artifacts where job_id = any(%s::uuid[])", ids
            ),
            costs=self.query(
                "select details->>'run_id' as run_id from cost_records where job_id = any(%s::uuid[])", ids
            ),
            notices=self.query(
                "select type, metadata->>'job_id' as job_id,"
                " case type when 'job_requeued' then metadata->>'run_id' end as run_id"
                " from notifications where metadata->>'job_id' = any(%s)",
                ids,
            ),
            launches=[launch for launch in self.cloud.launches() if launch.run_id in own],
            steps=[step for step in read_steps(self.folder / "volume" / "steps.jsonl") if step.run_id in own],
            orphans=[orphan for orphan in self.cloud.orphans() if orphan.run_id in own],
        )


def _first_certificate() -> str:
    mark = "-----END CERTIFICATE-----"
    return Path(certifi.where()).read_text().partition(mark)[0] + mark + "\n"
