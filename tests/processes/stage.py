"""`lora-worker` as a process between a real Supabase and a real RunPod worker, and their records of a job."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from sandbox.processes import own_environment
from sandbox.runpod import LocalRunPod
from sandbox.runpod.ledger import Execution, Launch
from sandbox.standin import TrainedStep, read_steps
from sandbox.supabase.project import Project
from tests.application.user import BASE_MODEL, ENDED, User
from tests.database.rows import Database, Row
from tests.processes.confinement import Confinement
from tests.processes.waiting import awaited, until
from tests.processes.warm_python import WarmProcess, WarmPython, run_command

_PACE = {
    "LORA_WORKER_POLL_SECONDS": "0.4",
    "LORA_WORKER_LEASE_SECONDS": "6",
    "LORA_WORKER_DOUBT_SECONDS": "20",
    "LORA_WORKER_LOST_SECONDS": "10",
    "LORA_WORKER_RETRY_BASE_SECONDS": "0.5",
}


class Stage:
    """One project, one endpoint, one user, and the workers that a test starts."""

    def __init__(self, project: Project, runpod: LocalRunPod, folder: Path, volume: Path | None = None) -> None:
        self.project, self.runpod, self.folder = project, runpod, folder
        self.user = User(project, folder)
        self.database = Database(project.database_url)
        self._volume = volume
        self._processes: list[subprocess.Popen[bytes] | WarmProcess] = []

    def close(self) -> None:
        """End the workers and all GPU work, so that no run is left for the next test's workers."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.runpod.faults.clear()
        for execution in self.runpod.orphans():
            self.runpod.forget(execution.job_id)
        self.database.rows("delete from training_runs where user_id = %s", self.user.user_id)
        # Else the next test's worker would send an errand for what this test's runs have left on the volume.
        self.database.rows("delete from training_served_removals")
        self.database.rows("delete from training_serving_errands")
        self.database.close()
        self.user.close()

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────

    def environment(self, **more: str) -> dict[str, str]:
        """A worker's environment: the stage's settings, and none of this machine's own."""
        return {
            **own_environment(),
            **_PACE,
            "SUPABASE_URL": self.project.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.project.secret_key,
            "SUPABASE_PUBLISHABLE_KEY": self.project.publishable_key,
            "GPU_CLUSTER_API_URL": self.runpod.api_url,
            "GPU_CLUSTER_API_KEY": self.runpod.api_key,
            "LORA_WORKER_BASE_MODELS": BASE_MODEL,
            "LORA_WORKER_DEFAULT_BASE_MODEL": BASE_MODEL,
            "LORA_WORKER_MAX_PER_USER": "",
            **more,
        }

    def worker(
        self,
        *arguments: str,
        module: str = "lora_worker.commands.cli",
        confinement: Confinement | None = None,
        **more: str,
    ) -> subprocess.Popen[bytes] | WarmProcess:
        """Start `lora-worker run`; it runs until it is stopped or the test ends."""
        process: subprocess.Popen[bytes] | WarmProcess
        with (self.folder / "worker.log").open("ab") as log:
            if confinement is None:
                process = self._start(module, "run", *arguments, output=(log.fileno(), log.fileno()), **more)
            else:
                process = subprocess.Popen(
                    confinement.command(sys.executable, "-m", module, "run", *arguments),
                    env=self.environment(**{**confinement.environment(), **more}),
                    cwd=confinement.folder,
                    stdout=log,
                    stderr=log,
                )
        self._processes.append(process)
        return process

    def _start(self, module: str, *arguments: str, output: tuple[int, int], **more: str) -> WarmProcess:
        # Not in the project's folder, which may hold a developer's .env.
        process = WarmPython.of("worker").start(
            module, *arguments, environment=self.environment(**more), cwd=self.folder, output=output
        )
        process.stdin.close()
        return process

    def one_pass(self, **more: str) -> None:
        """Run one single pass, as cron does."""
        assert self.dies(self.worker("--once", **more)) == 0, self.log()

    def command(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `lora-worker` with these arguments to its end, as an operator does in a pipe."""
        return run_command(*arguments, environment=self.environment(**more), cwd=self.folder)

    def stop(self, process: subprocess.Popen[bytes] | WarmProcess) -> int:
        """SIGTERM, and the exit code."""
        process.send_signal(signal.SIGTERM)
        return self.dies(process)

    def kill(self, process: subprocess.Popen[bytes] | WarmProcess) -> None:
        """SIGKILL the workers, and expire their leases at once."""
        process.kill()
        process.wait()
        self.expire_leases()

    def expire_leases(self) -> None:
        """Expire every lease of the user's runs."""
        self.database.rows("update training_runs set lease_expires_at = now() where user_id = %s", self.user.user_id)

    def log(self) -> str:
        """The logs of all workers of this stage."""
        return (self.folder / "worker.log").read_text()

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────

    def until(self, job_id: str, done: Callable[[Row], Any], what: str) -> Row:
        """Wait until the job meets the condition, which `what` describes; returns its row."""
        return awaited(lambda: self.user.job(job_id), what, fits=done, state=self.log)

    def ended(self, job_id: str) -> Row:
        """Wait until the job has ended; returns its row."""
        return self.until(job_id, lambda row: row["status"] in ENDED, "the job ends")

    def training(self, job_id: str, step: int = 3) -> Row:
        """Wait until the job has reached that step; returns its row."""
        return self.until(job_id, lambda row: (row["current_step"] or 0) >= step, f"step {step} is shown")

    def settled(self, job_id: str) -> list[Row]:
        """Wait until no run of the job is live; returns its runs."""
        self.until(job_id, lambda _: all(run["ended_at"] for run in self.runs(job_id)), "every run ends")
        return self.runs(job_id)

    def first_run_ended(self, job_id: str) -> Row:
        """Wait until the job's first run has ended, whatever becomes of the job; returns that run."""
        self.until(job_id, lambda _: any(run["ended_at"] for run in self.runs(job_id)[:1]), "the first run ends")
        return self.runs(job_id)[0]

    def gpus_free(self, job_id: str) -> None:
        """Wait until no GPU works for the job and none will."""
        until(
            lambda: not {run["id"] for run in self.runs(job_id)} & self._busy_runs(),
            "no GPU works for the job", state=self.log,
        )  # fmt: skip

    def dies(self, process: subprocess.Popen[bytes] | WarmProcess) -> int:
        """Wait until the worker ends by itself; returns its exit code."""
        return awaited(process.poll, "the worker ends", state=self.log)

    # ── what is known of a job ──────────────────────────────────────────────────────────────────────

    def runs(self, job_id: str) -> list[Row]:
        """The job's runs in order, ids as text."""
        rows = self.database.rows("select * from training_runs where job_id = %s order by attempt", job_id)
        return [{**row, "id": str(row["id"])} for row in rows]

    def launches(self, job_id: str) -> list[Launch]:
        """The launches of the job that RunPod accepted."""
        own = {run["id"] for run in self.runs(job_id)}
        return [launch for launch in tuple(self.runpod.ledger.launches) if launch.run_id in own]

    def executions(self, job_id: str) -> list[Execution]:
        """The deliveries of the job to RunPod's workers."""
        own = {run["id"] for run in self.runs(job_id)}
        return [execution for execution in tuple(self.runpod.ledger.executions) if execution.run_id in own]

    def steps(self, job_id: str) -> list[TrainedStep]:
        """The training steps that were taken for the job."""
        assert self._volume is not None
        own = {run["id"] for run in self.runs(job_id)}
        return [step for step in read_steps(self._volume / "steps.jsonl") if step.run_id in own]

    def at_runpod(self, external_job_id: str) -> Row:
        """RunPod's own answer for a launch."""
        headers = {"Authorization": f"Bearer {self.runpod.api_key}"}
        answer = httpx.get(f"{self.runpod.api_url}/status/{external_job_id}", headers=headers, timeout=30)
        answer.raise_for_status()
        return dict(answer.json())

    def _busy_runs(self) -> set[str]:
        return {execution.run_id or "" for execution in self.runpod.orphans()}
