"""Runs the stored jobs: one a GPU, in the order in which they came, each within its time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from lora_contract.child_processes import ending_of
from lora_worker.gpu_server.callbacks import Callbacks
from lora_worker.gpu_server.jobs import KEPT_SECONDS, Job, Jobs, State
from lora_worker.gpu_server.process import ProcessEnding, TrainerProcess, cause_of, trainer_environment
from lora_worker.launchers.base import EndCause
from lora_worker.observability.actions import Action

log = structlog.get_logger(__name__)

_NOTE_SECONDS = 5.0
"""How often the seconds of a running job are noted: so much of its time a kill of this server may lose."""
_LOOK_SECONDS = 15.0
"""How often jobs are looked for that have waited too long."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What jobs are run with. `gpus` are the values of `CUDA_VISIBLE_DEVICES`, or None for each job on the CPU."""

    command: Sequence[str]
    gpus: Sequence[str | None]
    folder: Path
    grace_seconds: float
    hidden: Collection[str] = ()
    """Variables that no trainer gets: settings of a worker, which may run on the same machine with all its keys."""

    def log_of(self, job_id: str) -> Path:
        """The file with what a job's trainer has printed."""
        return self.folder / "logs" / f"{job_id}.log"


@dataclass(slots=True)
class Live:
    """A job that runs now. `said` is the last message of its trainer."""

    job: Job
    began_at: float
    said: Any = None
    work: asyncio.Task[ProcessEnding] | None = None


class Runner:
    """Starts and ends the jobs. `clock` counts seconds; `run` goes on until it is cancelled."""

    def __init__(
        self,
        jobs: Jobs,
        machine: Machine,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.callbacks = callbacks or Callbacks()
        self._jobs = jobs
        self._sleep = sleep
        self._machine = machine
        self._clock = clock
        self._news = asyncio.Event()
        self.live: dict[str, Live] = {}
        self.problem: str | None = None
        """Why the last trainer could not be started, for the operator; None where one ran since."""

    async def run(self) -> None:
        """Serve every GPU. When cancelled, each running job is stopped with a checkpoint, and queued again."""
        (self._machine.folder / "logs").mkdir(exist_ok=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._expire())
            for gpu in self._machine.gpus:
                group.create_task(self._serve(gpu))

    async def _expire(self) -> None:
        while True:
            self._jobs.expire()
            await self._sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Something was submitted or cancelled: look now."""
        for live in self.live.values():
            job = self._jobs.find(live.job.id)
            if job is not None and job.is_cancelled and live.work is not None:
                live.work.cancel()
        self._news.set()

    def log_of(self, job_id: str) -> Path:
        """The file with what a job's trainer has printed."""
        return self._machine.log_of(job_id)

    def seconds_of(self, job: Job) -> float:
        """How long a job has run, all its starts together."""
        live = self.live.get(job.id)
        return live.job.seconds + self._clock() - live.began_at if live else job.seconds

    async def _serve(self, gpu: str | None) -> None:
        while True:
            self._news.clear()
            job = self._jobs.take("cpu" if gpu is None else gpu)
            if job is None:
                await self._news.wait()
                continue
            live = self.live[job.id] = Live(job, self._clock())
            self.callbacks.tell(job.id, job.state)
            try:
                await self._carry_out(live, gpu)
            finally:
                del self.live[job.id]
                self.callbacks.tell(job.id, self._state_of(job.id))
                self._remove_old_logs()

    def _state_of(self, job_id: str) -> State:
        job = self._jobs.find(job_id)
        return job.state if job else "failed"

    def _remove_old_logs(self) -> None:
        oldest = time.time() - KEPT_SECONDS
        for path in self._machine.log_of("").parent.glob("*.log"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    async def _carry_out(self, live: Live, gpu: str | None) -> None:
        job = live.job
        log.info("a job begins", action=Action.GPU_JOB_STARTED, job=job.id, run=job.run_id, gpu=gpu, start=job.starts)
        noting = asyncio.create_task(self._note_seconds(job))
        try:
            try:
                async with asyncio.timeout(max(job.execution_limit - job.seconds, 0)):
                    ending = await self._run_process(live, gpu)
            finally:
                # Before it ends: afterwards nothing is written to a job any more.
                self._jobs.note_seconds(job.id, self.seconds_of(job))
        except TimeoutError:
            # Not `timed_out`, which is a job that never began: that one may be tried again.
            self._jobs.end(job.id, "failed", cause=EndCause.OVER_TIME, error=_over_time(job))
        except OSError as error:
            self.problem = f"the trainer can't be started ({error.strerror or type(error).__name__})"
            self._jobs.end(job.id, "failed", cause=EndCause.IMPORT_FAILED, error=_sentence(self.problem))
        except asyncio.CancelledError:
            # This server ends: its trainer has saved a checkpoint, from which the next start goes on.
            self._jobs.give_back(job.id)
            raise
        else:
            self._settle(job, ending)
        finally:
            noting.cancel()
            ended = self._jobs.find(job.id)
            log.info("a job ends", action=Action.GPU_JOB_ENDED, job=job.id, run=job.run_id,
                     state=ended.state if ended else None, cause=ended.cause if ended else None)  # fmt: skip

    async def _run_process(self, live: Live, gpu: str | None) -> ProcessEnding | None:
        """Run the job's process; None where the job was cancelled, and its process has ended."""
        machine, job = self._machine, live.job

        def take(progress: Any) -> None:
            live.said = progress

        process = TrainerProcess(
            machine.command,
            env=trainer_environment(os.environ, gpu, hidden=machine.hidden),
            log=machine.log_of(job.id),
            grace_seconds=machine.grace_seconds,
            on_progress=take,
        )
        live.work = asyncio.create_task(process.run({"id": job.id, "input": job.request}))
        try:
            return await live.work
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                # This server ends, or the time is over: the process first, which may save a checkpoint.
                await _ended(live.work)
                raise
            return None

    def _settle(self, job: Job, ending: ProcessEnding | None) -> None:
        if ending is None:
            self._jobs.queue_again(job.id, "")  # which ends a cancelled job
            return
        if ending.result is not None:
            self.problem = None
            error = ending.result.get("error")
            # The trainer says the reason in words under this key.
            self._jobs.end(
                job.id,
                "failed" if error else "completed",
                cause=EndCause.RAISED if error else None,
                error=str(error)[:2000] if error else None,
                output=ending.result,
            )
        elif ending.status < 0:
            self._jobs.queue_again(job.id, f"The trainer's process was ended by {ending_of(ending.status)} each time.")
        else:
            self.problem = (
                f"the trainer ended with {ending_of(ending.status)} and no result: its log is in the folder logs"
            )
            self._jobs.end(job.id, "failed", cause=cause_of(ending), error=_sentence(self.problem))

    async def _note_seconds(self, job: Job) -> None:
        while True:
            await asyncio.sleep(_NOTE_SECONDS)
            self._jobs.note_seconds(job.id, self.seconds_of(job))


async def _ended(work: asyncio.Task[ProcessEnding]) -> None:
    work.cancel()
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(work)


def _over_time(job: Job) -> str:
    return f"The job ran longer than its {job.execution_limit:.0f} seconds."


def _sentence(problem: str) -> str:
    return f"{problem[0].upper()}{problem[1:]}."
