"""Faults of the workers, and what users do meanwhile."""

from __future__ import annotations

import time
from datetime import datetime

from tests.chaos.clouds.base import Cloud
from tests.chaos.crew import Worker
from tests.chaos.faults.table import FaultTable
from tests.chaos.poisoned import POISON
from tests.chaos.scene import CANCELLED, FAILED, Scene
from tests.chaos.world import Plan
from tests.processes.waiting import until

FAULTS = FaultTable(Cloud)

_STOPS = ("worker.launch.before_post", "worker.grant.before", "worker.progress.before", "worker.settle.before")
_WRITTEN_AT = {"launched": "launched_at", "upload granted": "upload_granted_at", "settled": "ended_at"}
_WRITES = frozenset({"launched", "upload granted", "settled", "stopping the GPU", "stray launch cancelled"})


@FAULTS.add("SIGKILL of one of two workers")
def worker_killed(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    _busiest(scene).kill()


@FAULTS.add("SIGKILL of the workers in turn, six times")
def workers_killed_repeatedly(scene: Scene) -> None:
    scene.queue()
    for _ in range(6):
        time.sleep(scene.rng.uniform(0.5, 2))
        scene.world.crew.workers[0].kill()
        scene.world.crew.start()


@FAULTS.add("workers stopped past their leases (SIGSTOP), then woken")
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


@FAULTS.add("a job that kills the worker in every preflight")
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


@FAULTS.add("cancelled at random moments")
def cancelled(scene: Scene) -> None:
    scene.queue(steps=(10, 30))
    for job_id in scene.rng.sample(scene.job_ids, len(scene.job_ids) // 2):
        time.sleep(scene.rng.uniform(0, 0.4))
        if scene.world.cancel(job_id):
            scene.ends[job_id] = CANCELLED


def _busiest(scene: Scene) -> Worker:
    (row,) = scene.world.query(
        "select worker from training_runs where job_id = any(%s::uuid[]) and worker is not null"
        " group by worker order by count(*) desc limit 1",
        scene.job_ids,
    )
    return next(worker for worker in scene.world.crew.workers if worker.is_called(row["worker"]))
