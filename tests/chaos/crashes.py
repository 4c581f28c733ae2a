"""SIGKILL at every crash point: each process is told where to die, and a supervisor starts the next one.

Each arming (a point, and the visit at which the process dies) is one process. Some workers and GPU workers
are never armed, so that work goes on; a feeder queues jobs until every armed process has died.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import httpx

from lora_contract.crash_points import CRASH_POINTS
from sandbox.runpod import LocalRunPod
from tests.chaos.crew import Worker
from tests.chaos.report import PointCount
from tests.chaos.scene import CANCELLED, COMPLETED, Scene
from tests.chaos.world import Plan
from tests.processes.waiting import PATIENCE_SECONDS

ENV = {
    # Crashes are many here, so jobs get more attempts than any of them needs.
    "LORA_WORKER_MAX_ATTEMPTS": "20",
    "LORA_WORKER_MAX_INFRASTRUCTURE_FAILURES": "50",
    "LORA_WORKER_MAX_HANDLINGS": "50",
    # Workers that are not armed take few jobs, so that armed ones reach their crash points.
    "LORA_WORKER_SLOTS": "2",
    # An endpoint that is never called, since it is private: each event still passes the point behind a delivery.
    "LORA_WORKER_WEBHOOKS": "https://127.0.0.1:9/hook whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}
_ARMED_ENV = {"LORA_WORKER_SLOTS": "4"}
_ARMED_WORKERS = 6
_ARMED_GPU_WORKERS = 5
_LEAST_PATIENCE_SECONDS = 15
_PATIENCE_RUNS = 20
"""A process is late when this many runs have ended since its start; machines differ too much to count seconds."""
_TRIES = 12
_TICK_SECONDS = 0.2

_MOST_VISITS = {
    **dict.fromkeys(("worker.claim.before", "worker.progress.before", "worker.progress.after"), 4),
    "trainer.train.step": 6,
    "worker.adopt.after": 1,
    "worker.release.before": 1,
    "worker.release.after": 1,
}
"""The latest visit of a point at which a process dies; 2 for points that are not listed."""


@dataclass
class Arming:
    """One process that must die at a crash point."""

    number: int
    point: str
    visit: int
    log: Path
    tries: int = 0
    began: float = 0.0
    runs_before: int = 0
    """How many runs had ended when its process was started."""

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that arm the process."""
        return {**_ARMED_ENV, "LORA_CRASH": f"{self.point}#{self.visit}=kill", "LORA_CRASH_LOG": str(self.log)}

    @property
    def has_struck(self) -> bool:
        """Whether the process has died at its point: it logs each visit just before."""
        return _visits(self.log)[self.point] >= self.visit

    def is_late(self, ended_runs: int) -> bool:
        """Whether the supervisor should stop waiting for it."""
        seconds = time.monotonic() - self.began
        had_its_chance = ended_runs >= self.runs_before + _PATIENCE_RUNS and seconds > _LEAST_PATIENCE_SECONDS
        return had_its_chance or seconds > PATIENCE_SECONDS


def _visits(log: Path) -> Counter[str]:
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


@dataclass
class Ledger:
    """Which processes must still die, and which have died."""

    folder: Path
    rng: random.Random
    waiting: deque[Arming] = field(default_factory=deque)
    killed: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)

    def plan(self, points: Sequence[str], seeds: int) -> None:
        """Every point as often as there are seeds, in random order; the seed decides on the visit."""
        for point in [point for point in points for _ in range(seeds)]:
            number = len(self.waiting)
            visit = self.rng.randint(1, _MOST_VISITS.get(point, 2))
            log = self.folder / f"visits-{point}-{number}.log"
            self.waiting.append(Arming(number, point, visit, log))
        self.rng.shuffle(self.waiting)

    def next(self) -> Arming | None:
        """The next arming to start."""
        return self.waiting.popleft() if self.waiting else None

    def strike(self, arming: Arming) -> None:
        """Record that its process died at the crash point."""
        self.killed[arming.point] += 1

    def put_back(self, arming: Arming) -> None:
        """Its process did not reach the point in time; the next process dies at its first visit."""
        arming.tries, arming.visit = arming.tries + 1, 1
        arming.log = arming.log.with_suffix(f".{arming.tries}")
        if arming.tries < _TRIES:
            self.waiting.append(arming)
        else:
            self.missed[arming.point] += 1


class Victim(Protocol):
    """A process under a supervisor."""

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""

    def stop(self) -> object:
        """End it."""


@dataclass
class GpuWorker:
    """A worker of the local RunPod."""

    runpod: LocalRunPod
    id: str

    @property
    def is_alive(self) -> bool:
        """Whether RunPod still counts it."""
        return self.id in self.runpod.workers()

    def stop(self) -> None:
        """SIGKILL."""
        self.runpod.kill_worker(self.id)


V = TypeVar("V", bound=Victim)


@dataclass
class Supervisor(Generic[V]):
    """Keeps so many armed processes at work, and starts the next in place of each that died."""

    ledger: Ledger
    places: int
    start: Callable[[Mapping[str, str]], V]
    provoke: Callable[[Arming, V], None]
    """Causes the events that some crash points need."""
    _armed: list[tuple[Arming, V]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether every armed process has died."""
        return not self._armed and not self.ledger.waiting

    def tick(self, ended_runs: int) -> None:
        """Replace processes that died, and stop those that are late."""
        for arming, victim in list(self._armed):
            struck = arming.has_struck
            if not struck and victim.is_alive and not arming.is_late(ended_runs):
                self.provoke(arming, victim)
                continue
            self._armed.remove((arming, victim))
            # Either a crash point of the training ended the training only, or the process never reached its point.
            victim.stop()
            self.ledger.strike(arming) if struck else self.ledger.put_back(arming)
        while len(self._armed) < self.places and (arming := self.ledger.next()):
            arming.began, arming.runs_before = time.monotonic(), ended_runs
            self._armed.append((arming, self.start(arming.env)))


class Feeder:
    """Keeps enough jobs queued and running that every process reaches its crash point, and not more."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._next_look = 0.0
        self.ended_runs = 0
        """The number of runs that had ended at the last look."""

    def tick(self) -> None:
        """Queue the jobs that are missing."""
        if time.monotonic() < self._next_look:
            return
        scene = self._scene
        self._next_look = time.monotonic() + scene.rng.uniform(0.3, 0.9)
        (now,) = scene.world.query(
            "select count(*) filter (where status = 'queued') as queued, count(*) as unfinished,"
            " (select count(*) from training_runs where ended_at is not null) as ended_runs"
            " from training_jobs where status in ('queued', 'initializing', 'running')"
        )
        self.ended_runs = now["ended_runs"]
        if now["queued"] < 3 and now["unfinished"] < scene.rng.randint(12, 24):
            plans = [Plan(scene.rng.randint(6, 12)) for _ in range(scene.rng.randint(2, 6))]
            scene.ends |= dict.fromkeys(scene.world.queue(plans), COMPLETED)


def kill_everywhere(scene: Scene, *, seeds: int, only: Sequence[str] = tuple(CRASH_POINTS)) -> list[PointCount]:
    """Kill a process at each point once per seed; returns how often each point was reached and struck."""
    folder, runpod = scene.world.folder, scene.world.runpod
    at_worker = Ledger(folder, scene.rng)
    at_worker.plan([point for point in only if point.startswith("worker.")], seeds)
    at_gpu = Ledger(folder, scene.rng)
    at_gpu.plan([point for point in only if point.startswith("trainer.")], seeds)
    workers = Supervisor[Worker](
        at_worker, _ARMED_WORKERS, scene.world.crew.start, lambda arming, worker: _provoke(scene, arming, worker)
    )
    gpu_workers = Supervisor[GpuWorker](
        at_gpu, _ARMED_GPU_WORKERS, lambda env: GpuWorker(runpod, runpod.start_worker(env)), lambda *_: None
    )
    feeder = Feeder(scene)
    while not (workers.is_done and gpu_workers.is_done):
        feeder.tick()
        workers.tick(feeder.ended_runs)
        gpu_workers.tick(feeder.ended_runs)
        time.sleep(_TICK_SECONDS)
    reached: Counter[str] = Counter()
    for log in folder.glob("visits-*"):
        reached += _visits(log)
    killed = at_worker.killed + at_gpu.killed
    return [PointCount(point, reached[point], killed[point], seeds) for point in only]


def _provoke(scene: Scene, arming: Arming, worker: Worker) -> None:
    kind = arming.point.split(".")[1]
    if kind == "release" and worker.has_started and scene.rng.random() < _TICK_SECONDS:
        worker.terminate()
    elif kind in {"cancel", "log"}:
        _cancel_one(scene, worker)
    elif kind == "stray":
        _make_stray(scene)


def _cancel_one(scene: Scene, worker: Worker) -> None:
    """Cancel a job that a worker holds, unless an earlier cancel still waits to be handled."""
    held = scene.world.query(
        "select r.job_id::text, j.status from training_runs r join training_jobs j on j.id = r.job_id"
        " where r.worker like %s and r.status in ('launched', 'running')",
        f"{worker.name}-%",
    )
    running = [row["job_id"] for row in held if row["status"] == "running"]
    if running and len(running) == len(held) and scene.world.cancel(running[0]):
        scene.ends[running[0]] = CANCELLED


def _make_stray(scene: Scene) -> None:
    """Launch an ended run once more, as a worker with an unconfirmed launch does, unless such a launch is open."""
    open_strays = scene.world.count("select jsonb_array_length(stray_launches(10))")
    ended = scene.world.query("select id::text from training_runs where ended_at is not null limit 1")
    if open_strays or not ended:
        return
    runpod = scene.world.runpod
    answer = httpx.post(
        f"{runpod.api_url}/run",
        headers={"authorization": f"Bearer {runpod.api_key}"},
        json={"input": {"run_id": ended[0]["id"]}},
        timeout=30,
    )
    scene.world.query(
        "insert into training_launches (run_id, launcher, external_job_id) values (%s, 'runpod', %s)",
        ended[0]["id"],
        answer.json()["id"],
    )
