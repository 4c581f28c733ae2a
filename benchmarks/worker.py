"""`make bench`: measures what the daemon costs.

- claims: jobs per second with eight workers and with one, and with batches and one by one, through REST
- a cycle: seconds and database calls of a poll round with 200 live runs and with 20
- status calls: seconds for 1,000 calls to a RunPod that takes 150 ms each, 16 at a time and with the adaptive limit
- memory: of a started daemon and of a bare Python interpreter

Writes bench-report.json. Absolute figures depend on the machine, so only the ratios can be compared between machines.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import structlog
from rich.console import Console
from rich.table import Table

from lora_worker.duties.daemon import Daemon
from lora_worker.launchers.base import EndpointHealth, LaunchRef, LaunchState, Observation
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.services import open_services
from sandbox.supabase import LocalSupabase

ROOT = Path(__file__).resolve().parent.parent
JOBS = 800


class IdleLauncher:
    """A launcher that answers at once that every launch is running, so that only our own work is measured."""

    name = "runpod"
    guide = RunPodLauncher.guide
    longest_launch_seconds = RunPodLauncher.longest_launch_seconds
    takes_errands = True
    endpoint = "https://api.runpod.ai/v2/ep"

    async def launch(self, payload: dict[str, Any], policy: Any) -> str:
        return uuid4().hex

    async def observe(self, launch: LaunchRef) -> Observation:
        return Observation(LaunchState.RUNNING)

    async def cancel(self, launch: LaunchRef) -> bool:
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(True, 1, 0)


def settings_for(project: LocalSupabase, **more: Any) -> RunPodSettings:
    return RunPodSettings(
        supabase_url=project.url,
        supabase_service_role_key=project.secret_key,
        supabase_publishable_key=project.publishable_key,
        gpu_cluster_api_url="http://127.0.0.1:9/v2/none",
        gpu_cluster_api_key="none",
        **more,
    )


def queue_jobs(database_url: str, count: int) -> None:
    """Delete all jobs, and queue `count` jobs of one new user."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("truncate public.training_jobs, public.training_runs, public.training_launches cascade")
        user = connection.execute(
            "insert into auth.users (id, email) values (gen_random_uuid(), gen_random_uuid() || '@example.com')"
            " returning id"
        ).fetchone()
        assert user is not None
        connection.execute(
            """
            with dataset as (
              insert into public.datasets (user_id, name, storage_path, file_name, file_size, status, training_ready)
              values (%(user)s, 'bench', gen_random_uuid()::text, 'f', 1, 'ready', true)
              returning id)
            insert into public.training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config,
                                              total_epochs, estimated_total_cost)
            select %(user)s, dataset.id, 'fast', '{}', '{"type": "H100", "count": 1}', 1, 0
            from dataset, generate_series(1, %(count)s)
            """,
            {"user": user[0], "count": count},
        )


def claim_all(settings: RunPodSettings, max_jobs: int = 1) -> int:
    async def work() -> int:
        claimed = 0
        async with open_services(settings) as services:
            while batch := await services.queue.claim(max_jobs, None):
                claimed += len(batch)
        return claimed

    return asyncio.run(work())


def measure_claims(project: LocalSupabase, processes: int) -> float:
    """Measure how many jobs per second `processes` processes claim, each one job at a time."""
    queue_jobs(project.database_url, JOBS)
    settings = [settings_for(project, name=f"bench-{n}") for n in range(processes)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(abs, range(processes)))  # start the processes before the time is taken
        started = time.perf_counter()
        claimed = sum(pool.map(claim_all, settings))
        seconds = time.perf_counter() - started
    assert claimed == JOBS, f"{claimed} claims of {JOBS} jobs"
    return JOBS / seconds


def measure_batches(project: LocalSupabase, max_jobs: int) -> float:
    """Measure how many jobs per second one process claims with `max_jobs` in each call."""
    queue_jobs(project.database_url, JOBS)
    started = time.perf_counter()
    claimed = claim_all(settings_for(project, name=f"batch-{max_jobs}"), max_jobs)
    seconds = time.perf_counter() - started
    assert claimed == JOBS, f"{claimed} claims of {JOBS} jobs"
    return JOBS / seconds


async def measure_cycle(project: LocalSupabase, runs: int) -> tuple[float, int]:
    """Measure seconds and database calls of one renewal and one poll round over `runs` live runs."""
    queue_jobs(project.database_url, runs)
    settings = settings_for(project, slots=runs, max_per_user=None, name=f"cycle-{runs}")
    async with open_services(settings, launcher=IdleLauncher()) as services:
        for assignment in await services.queue.claim(runs, None):
            run = assignment.run
            await services.queue.record_launch(
                run.id, run.lease_token, launcher="runpod", endpoint=IdleLauncher.endpoint, external_job_id=uuid4().hex
            )
        await services.queue.release()
        calls = 0

        async def count(request: httpx.Request) -> None:
            nonlocal calls
            calls += "/rpc/" in request.url.path

        services.http.event_hooks = {"request": [count]}
        daemon = Daemon(services)
        await daemon.runs.adopt()
        assert len(daemon.runs.held) == runs
        calls, started = 0, time.perf_counter()
        await daemon.runs.renew()
        await daemon.runs.poll()
        seconds = time.perf_counter() - started
        return seconds, calls


async def measure_looks(concurrency: int) -> float:
    """Measure seconds for 1,000 status calls to an API that takes 150 ms each, in the second of two cycles."""

    async def answer(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.15)
        return httpx.Response(200, json={"status": "IN_PROGRESS"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        launcher = RunPodLauncher("https://api.runpod.ai/v2/bench", "none", http=http, concurrency=concurrency)
        refs = [LaunchRef(None, str(number)) for number in range(1000)]
        seconds = 0.0
        for _ in range(2):
            started = time.perf_counter()
            await asyncio.gather(*map(launcher.observe, refs))
            seconds = time.perf_counter() - started
    return seconds


def memory_mb(code: str) -> float:
    """Measure the peak resident memory, in MB, of a Python process that runs `code` (Linux only)."""
    # Not with getrusage: its maximum includes the memory of this process at the fork.
    ask = "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", code + ask], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-2]) / 1024


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with LocalSupabase.start(ROOT / ".sandbox") as project:
        one, eight = measure_claims(project, 1), measure_claims(project, 8)
        alone, hundred, whole = (measure_batches(project, max_jobs) for max_jobs in (1, 100, JOBS))
        small, small_calls = asyncio.run(measure_cycle(project, 20))
        large, large_calls = asyncio.run(measure_cycle(project, 200))
    fixed, adapting = asyncio.run(measure_looks(16)), asyncio.run(measure_looks(200))
    bare, daemon = memory_mb("pass"), memory_mb("import lora_worker.commands.cli, lora_worker.duties.daemon")
    report = {
        "claims_per_second": {"one_process": one, "eight_processes": eight, "ratio": eight / one},
        "claims_per_second_in_batches": {
            "of_1": alone,
            "of_100": hundred,
            f"of_{JOBS}": whole,
            "ratio_100": hundred / alone,
            f"ratio_{JOBS}": whole / alone,
        },
        "cycle_seconds": {"20_runs": small, "200_runs": large, "ratio": large / small},
        "cycle_database_calls": {"20_runs": small_calls, "200_runs": large_calls},
        "thousand_looks_seconds": {"16_side_by_side": fixed, "adapting": adapting, "ratio": fixed / adapting},
        "memory_mb": {"bare_python": bare, "daemon": daemon, "ratio": daemon / bare},
        "machine": {"cores": os.cpu_count()},
    }
    table = Table("measured", "first", "second", "ratio")
    table.add_row("claims/s: 1 process, 8 processes", f"{one:.0f}", f"{eight:.0f}", f"{eight / one:.2f}")
    table.add_row("claims/s: one by one, 100 at a time", f"{alone:.0f}", f"{hundred:.0f}", f"{hundred / alone:.2f}")
    table.add_row(f"claims/s: one by one, {JOBS} at a time", f"{alone:.0f}", f"{whole:.0f}", f"{whole / alone:.2f}")
    table.add_row("cycle: 20 runs, 200 runs (s)", f"{small:.3f}", f"{large:.3f}", f"{large / small:.2f}")
    table.add_row(
        "calls a cycle: 20 runs, 200 runs", str(small_calls), str(large_calls), f"{large_calls / small_calls:.2f}"
    )
    table.add_row(
        "1,000 looks of 150 ms: 16 together, adapting (s)",
        f"{fixed:.2f}", f"{adapting:.2f}", f"{fixed / adapting:.2f}",
    )  # fmt: skip
    table.add_row("memory: bare Python, daemon (MB)", f"{bare:.0f}", f"{daemon:.0f}", f"{daemon / bare:.2f}")
    Console().print(table)
    (ROOT / "bench-report.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
