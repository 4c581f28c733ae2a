"""What `deploy smoke` does: queues a trial, has it worked on, waits, verifies the adapter, and removes everything."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from lora_worker.commands.waiting import wait_until_ended
from lora_worker.database.job_reports import JobDetails
from lora_worker.database.queue_health import QueueHealth
from lora_worker.duties.daemon import Daemon
from lora_worker.errors import ArgumentError, ArtifactError, ServiceUnavailableError, WorkerError
from lora_worker.services import Services
from lora_worker.submission.downloads import download
from lora_worker.submission.orders import enqueue
from lora_worker.submission.trials import remove_former_trials, remove_trial, trial_order, write_trial_dataset

_END_SECONDS = 180.0
"""How long a cancelled trial may take until its GPU is known to be free."""
_LOOK_SECONDS = 2.0
_PASSES_SECONDS = 180.0
"""A single pass that is longer ago was one by hand, and no other will follow."""
_REPORTS_SECONDS = 75.0
"""A daemon reports every half a minute. One that has been silent for longer has ended, or is of no use."""


@dataclass
class Trial:
    """A trial and what came of it. `failure` says in a sentence why it is no success."""

    base_model: str
    job: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    failure: str | None = None
    left: str | None = None
    """What could not be removed, and why."""


@dataclass
class Conduct:
    """Conducts one trial. `say` is told what goes on, `seen` of each look at the job."""

    services: Services
    say: Callable[[str], None]
    seen: Callable[[JobDetails], None]
    timeout_seconds: float
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self, base_model: str, gpu: str | None) -> Trial:
        """Conduct a trial. Whatever happens, also Ctrl-C: its job is ended, and its files and rows are removed.

        Raises:
            ArgumentError: the trial can't be queued; nothing is stored.
            ServiceError: database or storage did not answer.
        """
        services, trial = self.services, Trial(base_model)
        await services.queue.check_schema()
        former = await remove_former_trials(services)
        if former:
            self.say(f"removed what {former} former trials had left")
        async with self._worked_on() as attending:
            with tempfile.TemporaryDirectory(prefix="lora-worker-") as folder:
                order = trial_order(write_trial_dataset(Path(folder)), base_model, gpu)
                # Not broken off half-way by Ctrl-C: nobody would know then what there is to remove.
                placing = asyncio.create_task(enqueue(services, order, say=lambda _: None))
                try:
                    queued = await asyncio.shield(placing)
                    self.say(f"queued a trial with {base_model}: job {queued.job_id}")
                    watching = asyncio.create_task(self._watch(trial, queued.job_id, Path(folder) / "adapter"))
                    await _first_of(watching, attending)
                finally:
                    await asyncio.wait({placing})
                    if placing.exception() is None:
                        trial.left = await self._remove(placing.result().job_id)
        return trial

    @asynccontextmanager
    async def _worked_on(self) -> AsyncIterator[asyncio.Task[None]]:
        """Have somebody who works on the queue: a worker that runs already, or one in this process for the time.

        Yields the task that sees to that. It ends only by an error.

        Raises:
            ArgumentError: no worker runs, and other jobs wait, which a worker for the trial would take, too.
        """
        health = await self.services.queue.health()
        if _is_left_alone(health) and health["queued"]:
            raise ArgumentError(
                f"no worker runs, and {health['queued']} jobs wait, which a worker of this command would begin, too: "
                "start `lora-worker run`, and then this command again"
            )
        attending = asyncio.create_task(self._attend())
        try:
            yield attending
        finally:
            attending.cancel()
            with suppress(asyncio.CancelledError):
                await attending

    async def _attend(self) -> None:
        """Work on the queue as soon as nobody else does: a worker that has ended still looks alive for a while."""
        daemon = Daemon(self.services)
        while not await self._is_left_alone():
            await self.pause(_LOOK_SECONDS)
        self.say("no worker runs: this command works on the queue itself until the trial has ended")
        work = asyncio.create_task(daemon.run())
        try:
            await asyncio.shield(work)
        finally:
            daemon.stop()
            await asyncio.wait({work})

    async def _is_left_alone(self) -> bool:
        try:
            health = await self.services.queue.health()
        except ServiceUnavailableError:
            return False
        # With more than the trial in the queue, others' jobs would be begun, and left when this command ends.
        return _is_left_alone(health) and health["queued"] <= 1

    async def _watch(self, trial: Trial, job_id: UUID, folder: Path) -> None:
        waits_for = None

        def look(details: JobDetails) -> None:
            nonlocal waits_for
            waits_for = details["job"]["waits_for"]
            self.seen(details)

        try:
            async with asyncio.timeout(self.timeout_seconds):
                details = await wait_until_ended(self.services.queue, job_id, seen=look, pause=self.pause)
        except TimeoutError:
            reason = f": it waits for {waits_for}" if waits_for else ""
            trial.failure = f"the trial did not end within {self.timeout_seconds / 60:g} minutes{reason}"
            return
        trial.job = dict(details["job"])
        trial.stages = [dict(stage) for run in details["runs"] for stage in run["stages"]]
        if details["job"]["status"] != "completed":
            message = details["job"]["error_message"] or "without a reason"
            trial.failure = f"the trial's job is {details['job']['status']}: {message}"
            return
        try:
            done = await download(self.services, job_id, folder)
        except (ArtifactError, ArgumentError) as error:
            trial.failure = f"the trial's adapter is not what its manifest says: {error}"
            return
        trial.files, trial.bytes = len(done.files), sum(file.bytes for file in done.files)

    async def _remove(self, job_id: UUID) -> str | None:
        """End the job if it has not ended, and remove what belongs to it; says what is left, and why."""
        left: str | None = None
        try:
            if await self.services.queue.cancel_training_job(job_id):
                self.say("cancelling the trial's job")
            async with asyncio.timeout(_END_SECONDS):
                while left := await remove_trial(self.services, job_id):
                    if await self.services.queue.training_job_details(job_id) is None:
                        break  # An earlier call removed it, and its answer was lost.
                    await self.pause(_LOOK_SECONDS)
        except TimeoutError:
            return f"job {job_id} is still there: {left or 'its GPU is not known to be free'}"
        except WorkerError as error:
            return f"job {job_id} is still there: {error}"
        return None


async def _first_of(watching: asyncio.Task[None], attending: asyncio.Task[None]) -> None:
    """Wait until the trial has ended. Raises what ended the work on the queue, if that was first."""
    try:
        await asyncio.wait({watching, attending}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        else:
            attending.result()
    finally:
        watching.cancel()
        await asyncio.wait({watching})


def _is_left_alone(health: QueueHealth) -> bool:
    """Tell whether nobody takes new jobs: no daemon, and no single passes that follow each other, as cron's do."""
    return not any(
        not worker["draining"]
        and worker["seen_seconds_ago"] < (_PASSES_SECONDS if worker["single_pass"] else _REPORTS_SECONDS)
        for worker in health["workers"]
    )
