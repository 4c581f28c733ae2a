"""The faults: one function each. It queues its jobs, breaks something, and returns when that is over."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress
from datetime import datetime

import psycopg

from sandbox.standin import Mishap
from tests.chaos.clouds import GpuServerCloud, RunPodCloud
from tests.chaos.crew import Worker
from tests.chaos.poisoned import POISON
from tests.chaos.scene import CANCELLED, COMPLETED, FAILED, Act, Scene
from tests.chaos.world import DOUBT_SECONDS, REQUEST_TIMEOUT_SECONDS, Plan
from tests.processes.waiting import until

FAULTS: dict[str, Act] = {}
"""The faults by their names in the report, in its order."""
_ONLY: dict[str, str] = {}
"""The launcher to which a fault can happen alone."""

_OUTAGE_SECONDS = 4
_RETENTION_SECONDS = 1801
_STOPS = ("worker.launch.before_post", "worker.grant.before", "worker.progress.before", "worker.settle.before")
_WRITTEN_AT = {"launched": "launched_at", "upload granted": "upload_granted_at", "settled": "ended_at"}
_WRITES = frozenset({"launched", "upload granted", "settled", "stopping the GPU", "stray launch cancelled"})


def _fault(name: str, *, only: str | None = None) -> object:
    def register(act: Act) -> Act:
        FAULTS[name] = act
        if only is not None:
            _ONLY[name] = only
        return act

    return register


def faults_of(launcher: str) -> dict[str, Act]:
    """The faults that can happen where a launcher's jobs train."""
    return {name: act for name, act in FAULTS.items() if _ONLY.get(name, launcher) == launcher}


@_fault("none (reference)")
def nothing(scene: Scene) -> None:
    scene.queue()


# ── the database ────────────────────────────────────────────────────────────────────────────────────


@_fault("Postgres restarts, in order and by a crash")
def postgres_restart(scene: Scene) -> None:
    scene.queue()
    for how in ("fast", "crash"):
        scene.until_training(5)
        time.sleep(1)
        scene.world.supabase.postgres.restart(how)


@_fault("database connections are killed, five times")
def backends_killed(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    for _ in range(5):
        scene.world.supabase.postgres.kill_backends()
        time.sleep(0.7)


@_fault("no database connection is left")
def connections_exhausted(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    postgres = scene.world.supabase.postgres
    with ExitStack() as held, psycopg.connect(postgres.url, autocommit=True, application_name="hoarder") as control:
        deadline = time.monotonic() + _OUTAGE_SECONDS
        while time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                while True:
                    held.enter_context(psycopg.connect(postgres.url, application_name="hoarder"))
            # The fault takes each connection as soon as somebody returns it.
            control.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where backend_type = 'client backend' and application_name <> 'hoarder'"
            )
            time.sleep(0.02)


# ── the workers ─────────────────────────────────────────────────────────────────────────────────────


@_fault("SIGKILL of one of two workers")
def worker_killed(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    _busiest(scene).kill()


@_fault("SIGKILL of the workers in turn, six times")
def workers_killed_repeatedly(scene: Scene) -> None:
    scene.queue()
    for _ in range(6):
        time.sleep(scene.rng.uniform(0.5, 2))
        scene.world.crew.workers[0].kill()
        scene.world.crew.start()


@_fault("workers stopped past their leases (SIGSTOP), then woken")
def workers_paused(scene: Scene) -> None:
    crew = scene.world.crew
    crew.kill()
    few = {"LORA_WORKER_SLOTS": str(scene.jobs // (len(_STOPS) + 1))}
    sleepers = [crew.start({**few, "LORA_CRASH": f"{point}=stop"}) for point in _STOPS]
    sleepers.append(crew.start(few))
    crew.await_start()
    scene.queue()
    scene.until_training(5)
    sleepers[-1].pause()
    until(lambda: all(worker.is_paused for worker in sleepers), "every worker reaches the place where it stops")
    # Other workers adopt the runs, and the paused ones must notice it themselves.
    others = [crew.start(), crew.start()]
    crew.await_start(others)
    scene.wait_out_leases()
    marks = {worker.name: len(list(worker.log_lines())) for worker in sleepers}
    (woken,) = scene.world.query("select clock_timestamp() as at")
    for worker in sleepers:
        worker.resume()
    time.sleep(2)
    for worker in sleepers:
        deeds = _late_deeds(worker, marks[worker.name])
        scene.complaints += [
            f"{worker.name} woke up without its lease and yet: {event} {run_id}"
            for event, run_id in deeds
            if not _was_done_before(scene, event, run_id, woken["at"])
        ]
        worker.stop()
    crew.workers = others


def _late_deeds(worker: Worker, woken_at: int) -> list[tuple[str, str]]:
    """The log lines of a resumed worker on runs that it held before its pause and has not adopted again since."""
    lines = list(worker.log_lines())
    own = {line["run_id"] for line in lines[:woken_at] if line["event"] in {"claimed", "adopted"}}
    deeds = []
    for line in lines[woken_at:]:
        if line["event"] in {"claimed", "adopted"}:
            own.discard(line["run_id"])
        elif line["event"] in _WRITES and line.get("run_id") in own:
            deeds.append((line["event"], line["run_id"]))
    return deeds


def _was_done_before(scene: Scene, event: str, run_id: str, woken_at: datetime) -> bool:
    """Whether only the answer was late: by the database's clock, the call was carried out before the lease ended."""
    column = _WRITTEN_AT.get(event)
    if column is None:
        return False
    (run,) = scene.world.query(f"select {column} as at from training_runs where id = %s", run_id)
    return run["at"] is not None and run["at"] < woken_at


@_fault("a job that kills the worker in every preflight")
def worker_poisoned(scene: Scene) -> None:
    crew = scene.world.crew
    poisoned = {"LORA_WORKER_MAX_HANDLINGS": "4"}, "tests.chaos.poisoned"
    crew.replace(*poisoned)
    scene.queue(Plan(6, ends=FAILED, dataset_name=POISON))

    def restart_the_dead() -> bool:
        for worker in list(crew.workers):
            if not worker.is_alive:
                crew.start(*poisoned)
        return scene.count("error_code = 'worker_killed'") > 0

    until(restart_the_dead, "the poisonous job is given up")


@_fault("no worker while runs end and RunPod forgets them", only="runpod")
def daemon_down(scene: Scene) -> None:
    runpod, crew = scene.world.runpod, scene.world.crew
    # Trainers that finish meanwhile get no grant; keep their wait short.
    crew.replace({"LORA_WORKER_GRANT_WAIT_SECONDS": "5"})
    # Results come late, so that runs are published but not yet settled when the workers are killed.
    with scene.armed("job-done", "delay", seconds=3, times=None):
        scene.queue()
        until(lambda: len(scene.world.manifests(scene.job_ids)) >= 5, "five runs are published")
        crew.stop()
        for waiting in [one for one in runpod.orphans() if not one.worker_id][10:]:
            runpod.forget(waiting.job_id)
        until(lambda: not runpod.orphans(), "RunPod has nothing more to do")
        runpod.advance(_RETENTION_SECONDS)
    crew.replace({})


@_fault("cancelled at random moments")
def cancelled(scene: Scene) -> None:
    scene.queue(steps=(10, 30))
    for job_id in scene.rng.sample(scene.job_ids, len(scene.job_ids) // 2):
        time.sleep(scene.rng.uniform(0, 0.4))
        if scene.world.cancel(job_id):
            scene.ends[job_id] = CANCELLED


# ── RunPod: launching ───────────────────────────────────────────────────────────────────────────────


@_fault("/run: 429, with and without Retry-After")
def launch_too_many(scene: Scene) -> None:
    with (
        scene.armed("run", "respond", status=429, retry_after_seconds=1, times=25) as politely,
        scene.armed("run", "respond", status=429, times=25) as bluntly,
    ):
        scene.queue()
        scene.until_struck(politely, 25)
        scene.until_struck(bluntly, 25)


@_fault("/run: 500 and 503, nothing accepted")
def launch_fails(scene: Scene) -> None:
    with (
        scene.armed("run", "respond", status=500, times=10) as broken,
        scene.armed("run", "respond", status=503, body="html", times=10) as busy,
    ):
        scene.queue()
        scene.until_struck(broken, 10)
        scene.until_struck(busy, 10)


@_fault("/run: accepted, and the answer lost")
def launch_answer_lost(scene: Scene) -> None:
    # A trainer that checks in by itself spares its run a second launch.
    lost = min(20, scene.jobs)
    with scene.armed("run", "drop_answer", times=lost) as hits:
        scene.queue()
        scene.until_struck(hits, lost)


@_fault("/run: slower than the caller waits, accepted or not")
def launch_slow(scene: Scene) -> None:
    patience = REQUEST_TIMEOUT_SECONDS + 1
    with (
        scene.armed("run", "delay_answer", seconds=patience, times=10) as accepted,
        scene.armed("run", "delay", seconds=patience, times=10) as delayed,
    ):
        scene.queue()
        scene.until_struck(accepted, 10)
        scene.until_struck(delayed, 10)
        time.sleep(patience)


@_fault("/run: broken JSON, HTML or nothing as an answer")
def launch_unreadable(scene: Scene) -> None:
    with ExitStack() as stack:
        hits = [
            stack.enter_context(scene.armed("run", "respond", status=200, body=body, times=6))
            for body in ("broken_json", "html", "empty")
        ]
        scene.queue()
        for count in hits:
            scene.until_struck(count, 6)


@_fault("the endpoint has no workers for a while (max 0)", only="runpod")
def no_gpu_workers(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    cloud = scene.world.cloud
    assert isinstance(cloud, RunPodCloud)
    cloud.runpod.set_workers(max_workers=0)
    time.sleep(_OUTAGE_SECONDS + DOUBT_SECONDS)
    cloud.runpod.set_workers(max_workers=cloud.workers)


# ── RunPod: watching ────────────────────────────────────────────────────────────────────────────────


@_fault("/status: 500, 429, HTML and silence for a while")
def status_unreadable(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    with ExitStack() as stack:
        odds = {"probability": 0.5, "times": None}
        stack.enter_context(scene.armed("status", "respond", status=500, seed=1, **odds))
        stack.enter_context(scene.armed("status", "respond", status=429, seed=2, **odds))
        stack.enter_context(scene.armed("status", "respond", status=200, body="html", seed=3, **odds))
        stack.enter_context(scene.armed("status", "disconnect", times=None))
        time.sleep(_OUTAGE_SECONDS)


@_fault("/status: 404 for every job for a while")
def status_missing(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    with scene.armed("status", "respond", status=404, times=None):
        time.sleep(_OUTAGE_SECONDS)


@_fault("the launcher refuses all connections for a while")
def launcher_away(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    with scene.world.cloud.outage():
        time.sleep(_OUTAGE_SECONDS)


@_fault("jobs forgotten (404), before and after they published", only="runpod")
def jobs_forgotten(scene: Scene) -> None:
    runpod = scene.world.runpod
    forgotten: set[str] = set()
    with scene.armed("job-done", "delay", seconds=2, times=None):
        scene.queue()
        scene.until_training(5)
        training = scene.world.query(
            "select external_job_id as id from training_runs where job_id = any(%s::uuid[])"
            " and status = 'running' and upload_request is null limit 4",
            scene.job_ids,
        )
        for row in training:
            runpod.forget(row["id"])

        def forget_the_published() -> bool:
            for job_id in scene.world.manifests(scene.job_ids).values():
                runpod.forget(job_id)
                forgotten.add(job_id)
            return len(forgotten) >= 8

        until(forget_the_published, "eight published runs to forget")


# ── RunPod: working ─────────────────────────────────────────────────────────────────────────────────


@_fault("results refused: job stuck, run again, or ended without output", only="runpod")
def results_lost(scene: Scene) -> None:
    with ExitStack() as stack:
        hits = [
            stack.enter_context(scene.armed("job-done", "lose_result", then=then, times=9))
            for then in ("stuck", "retried", "completed")
        ]
        scene.queue()
        for count in hits:
            # The SDK tries each result three times.
            scene.until_struck(count, 9)


@_fault("a late progress overwrites the result", only="runpod")
def late_progress(scene: Scene) -> None:
    with scene.armed("job-done", "late_progress", times=8) as hits:
        scene.queue()
        scene.until_struck(hits, 8)


@_fault("GPU workers killed in the middle of jobs", only="runpod")
def gpu_workers_killed(scene: Scene) -> None:
    with scene.armed("dispatch", "kill_worker", seconds=0.8, times=6, skip=4) as hits:
        scene.queue()
        scene.until_struck(hits, 6)
        time.sleep(0.8)


@_fault("jobs that kill their GPU worker or crash, at every attempt", only="runpod")
def gpu_poison(scene: Scene) -> None:
    scene.queue(
        Plan(8, Mishap.KILL_WORKER, FAILED),
        *[Plan(8, Mishap.CRASH, FAILED)] * 2,
        *[Plan(8, Mishap.LOSS_NOT_FINITE, FAILED)] * 2,
        *[Plan(12, Mishap.CRASH_ONCE, COMPLETED)] * 3,
    )


@_fault("jobs handed to two GPU workers at once", only="runpod")
def delivered_twice(scene: Scene) -> None:
    with scene.armed("dispatch", "deliver_twice", times=8, skip=2) as hits:
        # Longer than the heartbeat interval, within which the superseded execution learns of its lost fence.
        scene.queue(steps=(50, 70))
        scene.until_struck(hits, 8)


@_fault("RunPod reports jobs as timed out instead of starting them", only="runpod")
def timed_out(scene: Scene) -> None:
    with scene.armed("dispatch", "time_out", times=8) as hits:
        scene.queue()
        scene.until_struck(hits, 8)


# ── a GPU server: working ───────────────────────────────────────────────────────────────────────────


@_fault("SIGKILL of the GPU server, which starts again, three times", only="gpu-server")
def gpu_server_killed(scene: Scene) -> None:
    server = _cloud(scene).server
    scene.queue()
    for _ in range(3):
        scene.until_training(5)
        time.sleep(scene.rng.uniform(0.5, 2))
        server.kill()
        server.start()


@_fault("trainers of the GPU server killed in the middle of jobs", only="gpu-server")
def trainers_killed(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    for _ in range(6):
        time.sleep(0.7)
        pids = _cloud(scene).server.trainers()
        if pids:
            with suppress(ProcessLookupError):
                os.kill(scene.rng.choice(pids), signal.SIGKILL)


@_fault("no worker while the GPU server ends its jobs", only="gpu-server")
def workers_away(scene: Scene) -> None:
    crew = scene.world.crew
    # Trainers that finish meanwhile get no grant; keep their wait short.
    crew.replace({"LORA_WORKER_GRANT_WAIT_SECONDS": "5"})
    scene.queue()
    scene.until_training(5)
    crew.stop()
    until(lambda: not _cloud(scene).orphans(), "the GPU server has nothing more to do")
    crew.replace({})


@_fault("jobs of the GPU server that crash, at every attempt or once", only="gpu-server")
def trainings_crash(scene: Scene) -> None:
    scene.queue(
        *[Plan(8, Mishap.CRASH, FAILED)] * 2,
        *[Plan(8, Mishap.LOSS_NOT_FINITE, FAILED)] * 2,
        *[Plan(12, Mishap.CRASH_ONCE, COMPLETED)] * 3,
    )


def _cloud(scene: Scene) -> GpuServerCloud:
    cloud = scene.world.cloud
    assert isinstance(cloud, GpuServerCloud)
    return cloud


def _busiest(scene: Scene) -> Worker:
    (row,) = scene.world.query(
        "select worker from training_runs where job_id = any(%s::uuid[]) and worker is not null"
        " group by worker order by count(*) desc limit 1",
        scene.job_ids,
    )
    return next(worker for worker in scene.world.crew.workers if worker.is_called(row["worker"]))
