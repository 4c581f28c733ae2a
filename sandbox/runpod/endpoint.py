"""An endpoint: connects jobs, workers and faults, and answers long polls. All of it runs on one event loop."""

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
from sandbox.runpod.pool import Image, Placement, Pool, Wire, Worker

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
"""RunPod's documented rate limits, in calls per 10 seconds."""


class Clock:
    """A clock of Unix seconds that a test can move forward."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self._source() + self._ahead

    def advance(self, seconds: float) -> None:
        """Move the time of jobs forward (time-outs, ttl, retention, rate limits). Processes do not notice it."""
        self._ahead += seconds


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """How the endpoint behaves. Durations in seconds."""

    endpoint: str = "local"
    handler_module: str = "lora_trainer.handler"
    workers_max: int = 1
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment variables for the workers, as an endpoint's template sets them."""
    idle_timeout_seconds: float = 60
    ping_interval_seconds: int = 2
    ping_timeout_seconds: float = 60
    poll_hold_seconds: float = 20
    """How long the long polls job-take and job-stop wait for an answer."""
    stop_by: Literal["job-stop", "kill"] = "job-stop"
    """How a cancel or a time-out stops the worker; RunPod does not document which way it uses."""
    stop_grace_seconds: float = 5
    """The time between SIGTERM and SIGKILL when a worker is stopped."""
    rate_limits: Mapping[str, int] = field(default_factory=lambda: RATE_LIMITS)
    """Calls per 10 seconds by operation. An operation that is not listed has no limit."""
    retry_after_seconds: int | None = None
    """The header `Retry-After` of a 429, if set; RunPod documents none."""


class Endpoint:
    """The state of an endpoint, which the public API and the workers' API both use."""

    def __init__(
        self,
        settings: EndpointSettings,
        image: Image,
        wire: Wire,
        clock: Clock,
        *,
        faults: Faults,
        ledger: Ledger,
        place: Callable[[], Placement | None],
    ) -> None:
        self.settings = settings
        self.wire = wire
        self.clock = clock
        self.ledger = ledger
        self.faults = faults
        self.jobs = Jobs(clock, self.ledger)
        self.pool = Pool(
            image,
            wire,
            clock=clock,
            place=place,
            max_workers=settings.workers_max,
            idle_timeout_seconds=settings.idle_timeout_seconds,
            ping_timeout_seconds=settings.ping_timeout_seconds,
            stop_grace_seconds=settings.stop_grace_seconds,
        )
        self._changed = asyncio.Event()
        self.is_closing = False

    def keep(self) -> None:
        """Apply time-outs and watch the processes. Must be called every few hundredths of a second."""
        self.jobs.expire()
        for worker_id in self.pool.reap():
            self.jobs.leave(worker_id)
        for worker in self.pool.all():
            if self.pool.is_silent(worker):
                self.jobs.suspect(worker.id)
        self.pool.logs.keep()
        self.react()

    def remove(self) -> None:
        """Delete all jobs and kill all workers, which `keep` then notes one after the other."""
        for job in self.jobs.all():
            self.jobs.forget(job.id)
        self.pool.max_workers, self.pool.min_workers, self.pool.throttled = 0, 0, True
        for worker in self.pool.all():
            self.pool.kill(worker.id)
        self._wake()

    def close(self) -> None:
        """End all long polls and all workers at once."""
        self.is_closing = True
        self._wake()
        self.pool.close()

    def react(self) -> None:
        """Start or stop workers as the jobs require, and wake all long polls. Must be called after every change."""
        if self.settings.stop_by == "kill":
            for execution in self.jobs.open_executions():
                if execution.stop_requested:
                    self.pool.retire(execution.worker_id)
        self.pool.adjust(self.jobs.waiting(), self.busy())
        self._wake()

    def busy(self) -> set[str]:
        """Return the ids of the workers that have a job."""
        return {execution.worker_id for execution in self.jobs.open_executions()}

    async def wait_for_end(self, job: Job, seconds: float) -> None:
        """Wait until the job has ended, but at most `seconds`."""
        await self._hold(lambda: job.is_over or None, seconds)

    async def next_job(self, worker: Worker, *, has_job: bool) -> dict[str, Any] | None:
        """Wait for a job for a worker (long poll); returns it as the SDK reads it, or None."""
        if not has_job:
            self.jobs.leave(worker.id)
        poll = self.pool.asked_for_work(worker)
        self.react()
        job = await self._hold(lambda: self._hand_over(worker, poll), self.settings.poll_hold_seconds)
        return job if isinstance(job, dict) else None

    async def next_stops(self, worker: Worker) -> list[str]:
        """Wait for jobs that a worker must stop (long poll); returns their ids."""

        def probe() -> list[str] | None:
            stops = self.jobs.stops_for(worker.id)
            return stops if stops or not worker.takes_work else None

        return await self._hold(probe, self.settings.poll_hold_seconds) or []

    def take_progress(self, worker: Worker, job_id: str, output: Any, fault: Fault | None) -> None:
        """Take a progress update from a worker."""
        if fault is not None and fault.action == "kill_worker":
            self._kill_later(worker, fault)
        unguarded = fault is not None and fault.action == "unguarded"
        self.jobs.progress(job_id, output, guarded=not unguarded)

    def take_result(self, worker: Worker, job_id: str, result: dict[str, Any], fault: Fault | None) -> bool:
        """Take a result from a worker; returns whether it was accepted."""
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
        """Send SIGKILL to the workers that have the job; returns whether there were any."""
        having = [execution for execution in self.jobs.open_executions() if execution.job_id == job_id]
        for execution in having:
            self.pool.kill(execution.worker_id)
        return bool(having)

    def set_workers(self, *, max_workers: int | None = None, throttled: bool | None = None) -> None:
        """Set the highest number of workers, and whether no GPU is available (`throttled`)."""
        if max_workers is not None:
            self.pool.max_workers = max_workers
        if throttled is not None:
            self.pool.throttled = throttled
        self.react()

    def orphans(self) -> list[Execution]:
        """Return everything that costs money now or later: open executions, and one entry for each waiting job."""
        waiting = [Execution(job.id, job.run_id, "", job.queued_at) for job in self.jobs.all() if job.is_waiting]
        return [*self.jobs.open_executions(), *waiting]

    def _hand_over(self, worker: Worker, poll: int) -> dict[str, Any] | Literal[False] | None:
        # If the SDK has reconnected, it reads only the answer to its latest poll.
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
        while (found := probe()) is None and not self.is_closing and loop.time() < deadline:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
        return found

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def as_dispatched(job: Job) -> dict[str, Any]:
    """Return the job as a worker gets it. Like RunPod, this omits an empty input, with which the SDK can't cope."""
    kept = {key: job.request[key] for key in ("input", "webhook", "s3Config") if job.request.get(key)}
    return {"id": job.id, **kept}
