"""One endpoint: its jobs, its workers, its faults, and who waits for what. Lives on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sandbox.runpod.faults import Fault, Faults
from sandbox.runpod.jobs import Job, Jobs
from sandbox.runpod.ledger import Execution, Ledger
from sandbox.runpod.pool import Image, Pool, Wire, Worker

T = TypeVar("T")

RATE_LIMITS: Mapping[str, int] = {
    "run": 1000,
    "runsync": 2000,
    "status": 2000,
    "stream": 2000,
    "cancel": 100,
    "purge-queue": 2,
    "requests": 10,
}
"""RunPod's own, in calls per 10 seconds."""

_TICK_SECONDS = 0.05


class Clock:
    """Seconds since the epoch, with a hand that a test can move."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead = 0.0

    def __call__(self) -> float:
        """The time."""
        return self._source() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass for jobs (time-outs, ttl, retention, rates); processes don't notice."""
        self._ahead += seconds


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """How the endpoint behaves. Durations in seconds."""

    endpoint: str = "local"
    handler_module: str = "lora_trainer.handler"
    workers_max: int = 1
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the endpoint's template sets in its workers."""
    idle_timeout_seconds: float = 60
    ping_interval_seconds: int = 2
    ping_timeout_seconds: float = 60
    poll_hold_seconds: float = 20
    """How long job-take and job-stop are held open."""
    stop_by: Literal["job-stop", "kill"] = "job-stop"
    """How a cancel or a time-out reaches the worker; which one RunPod uses is not documented."""
    stop_grace_seconds: float = 5
    """Between SIGTERM and SIGKILL of a worker that is to end."""
    rate_limits: Mapping[str, int] = field(default_factory=lambda: RATE_LIMITS)
    """Calls per 10 seconds by operation; an empty one is no limit."""
    retry_after_seconds: int | None = None
    """Sent with a 429 when set; RunPod documents none."""


class Endpoint:
    """What both APIs act on."""

    def __init__(self, settings: EndpointSettings, image: Image, wire: Wire, clock: Clock) -> None:
        self.settings = settings
        self.wire = wire
        self.clock = clock
        self.ledger = Ledger()
        self.faults = Faults()
        self.jobs = Jobs(clock, self.ledger)
        self.pool = Pool(
            image,
            wire,
            max_workers=settings.workers_max,
            idle_timeout_seconds=settings.idle_timeout_seconds,
            ping_timeout_seconds=settings.ping_timeout_seconds,
            stop_grace_seconds=settings.stop_grace_seconds,
        )
        self._changed = asyncio.Event()
        self._closing = False

    async def keep(self) -> None:
        """Watch time and processes until cancelled, then end every worker."""
        try:
            while True:
                self.jobs.expire()
                for worker_id in self.pool.reap():
                    self.jobs.leave(worker_id)
                for worker in self.pool.all():
                    if self.pool.is_silent(worker):
                        self.jobs.suspect(worker.id)
                self.react()
                await asyncio.sleep(_TICK_SECONDS)
        finally:
            self._closing = True
            self._wake()
            self.pool.close()

    def react(self) -> None:
        """Bring workers in line with jobs and let every held call look again. After every change."""
        if self.settings.stop_by == "kill":
            for execution in self.jobs.open_executions():
                if execution.stop_requested:
                    self.pool.retire(execution.worker_id)
        self.pool.adjust(self.jobs.waiting(), self.busy())
        self._wake()

    def busy(self) -> set[str]:
        """The ids of the workers that have a job."""
        return {execution.worker_id for execution in self.jobs.open_executions()}

    async def wait_for_end(self, job: Job, seconds: float) -> None:
        """Return when the job is over, or the seconds are."""
        await self._hold(lambda: job.is_over or None, seconds)

    async def next_job(self, worker: Worker, *, has_job: bool) -> dict[str, Any] | None:
        """Long poll of a worker for work: what it is handed, as the SDK reads it."""
        if not has_job:
            self.jobs.leave(worker.id)
        poll = self.pool.asked_for_work(worker)
        self.react()
        job = await self._hold(lambda: self._hand_over(worker, poll), self.settings.poll_hold_seconds)
        return job if isinstance(job, dict) else None

    async def next_stops(self, worker: Worker) -> list[str]:
        """Long poll of a worker for the jobs that it is to stop."""

        def probe() -> list[str] | None:
            stops = self.jobs.stops_for(worker.id)
            return stops if stops or not worker.takes_work else None

        return await self._hold(probe, self.settings.poll_hold_seconds) or []

    def take_progress(self, worker: Worker, job_id: str, output: Any, fault: Fault | None) -> None:
        """An update from a worker."""
        if fault is not None and fault.action == "kill_worker":
            self._kill_later(worker, fault)
        unguarded = fault is not None and fault.action == "unguarded"
        self.jobs.progress(job_id, output, guarded=not unguarded)

    def take_result(self, worker: Worker, job_id: str, result: dict[str, Any], fault: Fault | None) -> bool:
        """A result from a worker; whether it was accepted."""
        action = fault.action if fault is not None else None
        execution = self.jobs.execution_on(worker.id, job_id)
        if fault is not None and action == "lose_result":
            self.jobs.refuse_result(worker.id, job_id, fault.then)
        if fault is not None and action == "kill_worker":
            self._kill_later(worker, fault)
        if action == "kill_worker" or (execution is not None and execution.refused_then is not None):
            return False
        self.jobs.finish(job_id, worker.id, result)
        if action == "late_progress":
            self.jobs.revive(job_id)
        if result.get("stopPod"):
            self.pool.retire(worker.id)
        self.react()
        return True

    def kill_worker_of(self, job_id: str) -> bool:
        """SIGKILL to the workers that have the job; whether there were any."""
        having = [execution for execution in self.jobs.open_executions() if execution.job_id == job_id]
        for execution in having:
            self.pool.kill(execution.worker_id)
        return bool(having)

    def set_workers(self, *, max_workers: int | None = None, throttled: bool | None = None) -> None:
        """Change how many workers there may be, and whether a GPU is to be had at all."""
        if max_workers is not None:
            self.pool.max_workers = max_workers
        if throttled is not None:
            self.pool.throttled = throttled
        self.react()

    def orphans(self) -> list[Execution]:
        """Executions that go on, and for each waiting job the one to come: all that still costs or will."""
        waiting = [Execution(job.id, job.run_id, "", job.queued_at) for job in self.jobs.all() if job.is_waiting]
        return [*self.jobs.open_executions(), *waiting]

    def _hand_over(self, worker: Worker, poll: int) -> dict[str, Any] | Literal[False] | None:
        # Of two polls (the SDK reconnects) only the later one has a reader.
        if poll != worker.polls or not worker.takes_work:
            return False
        if self.jobs.execution_on(worker.id) is not None or not self.pool.may_work(worker):
            return None
        job = self.jobs.upcoming(worker.id)
        if job is None:
            return None
        fault = self.faults.draw("dispatch", job_id=job.id, worker_id=worker.id)
        if fault is not None and fault.action == "time_out":
            self.jobs.time_out(job.id)
            return None
        self.jobs.take(worker.id)
        if fault is not None and fault.action == "kill_worker":
            self._kill_later(worker, fault)
        if fault is not None and fault.action == "deliver_twice":
            self.jobs.deliver_twice(job.id)
        return as_dispatched(job)

    def _kill_later(self, worker: Worker, fault: Fault) -> None:
        if fault.seconds == 0:
            self.pool.kill(worker.id)
        else:
            asyncio.get_running_loop().call_later(fault.seconds, self.pool.kill, worker.id)

    async def _hold(self, probe: Callable[[], T | None], seconds: float) -> T | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (found := probe()) is None and not self._closing and loop.time() < deadline:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
        return found

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def as_dispatched(job: Job) -> dict[str, Any]:
    """What a worker is given. RunPod loses an empty input on the way, and the SDK chokes on that."""
    kept = {key: job.request[key] for key in ("input", "webhook", "s3Config") if job.request.get(key)}
    return {"id": job.id, **kept}
