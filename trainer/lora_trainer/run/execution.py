"""One execution of one run, from check-in to result.

RunPod's SDK stays outside: the handler passes in the request and a function that sends progress.

The work (download, train, publish) runs beside its guards: the heartbeat, which notices a lost fence; the machine's
SIGTERM; and the time limit. Whichever ends first decides. If a guard ends first, the work is cancelled, which stops
the child process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
import uuid
from contextlib import suppress
from typing import Any

from lora_contract.child_processes import finish
from lora_contract.crash_points import crash_point
from lora_contract.curve import thin_points
from lora_contract.log_lines import run_begins
from lora_contract.protocol import STAGE_PROGRESS, Point, Progress, Request, Result, Stage, Summary
from lora_contract.tracing import Traces
from lora_trainer.errors import (
    CancelledByUserError,
    ChannelUnreachableError,
    FenceLostError,
    GrantMissingError,
    PublishingError,
    StoppedError,
    SupersededError,
    TimeLimitError,
    TrainingError,
)
from lora_trainer.run.channel import ChannelClient
from lora_trainer.run.child import TrainingChild
from lora_trainer.run.download import check_init_adapter, download_adapter, download_dataset
from lora_trainer.run.gpu import gpus_for, visible_gpus
from lora_trainer.run.logs import LogTail, describe, secrets_of
from lora_trainer.run.proving import Prover, proof_task
from lora_trainer.run.publishing import publish
from lora_trainer.run.runpod_progress import ProgressPoster, Send
from lora_trainer.run.serving import serve, withdraw
from lora_trainer.run.sizes import fit_heartbeat, fit_message
from lora_trainer.run.stage_spans import StageSpans
from lora_trainer.run.task import InitAdapter, Outcome, Task
from lora_trainer.run.volume import JobFolder, find_volume, naming_full_disks, open_job_folder, remove_stale_jobs
from lora_trainer.settings import Settings

log = logging.getLogger(__name__)

RECIPE = 4
"""Must be raised by one with each change of the recipe after which an older checkpoint may not be resumed."""

_RESULT_POINTS = 250
"""Most points of the curve in a result. The manifest in the bucket has more."""


class Execution:
    """Carries out one request.

    Whoever notices that the machine is taken away sets `stop`: the execution then ends with a checkpoint.
    """

    def __init__(
        self,
        request: Request,
        external_job_id: str,
        settings: Settings,
        send: Send,
        *,
        execution_id: str | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.stop = asyncio.Event()
        self._request = request
        self._settings = settings
        self._execution_id = execution_id or str(uuid.uuid4())
        self._external_job_id = external_job_id
        self._started = time.monotonic()
        self._outcome: Outcome | None = None
        self._folder_lock = asyncio.Lock()
        """Held by whoever takes the job's folder, notes seconds in it, or removes it."""
        self._is_removing_folder = False
        self._stage_begins = asyncio.Event()
        self._volume = find_volume(settings.volume)
        self._folder = open_job_folder(self._volume, request.job_id, self._execution_id)
        self._poster = ProgressPoster(
            send, interval_seconds=settings.progress_seconds, settle_seconds=settings.settle_seconds
        )
        self._spans = StageSpans(traces or Traces(), request, self._execution_id)
        secrets = secrets_of(request)
        self._log = LogTail(secrets)
        self._child = TrainingChild(
            settings.child,
            grace_seconds=settings.grace_seconds,
            on_progress=self._take_progress,
            on_line=self._log.add,
            secrets=secrets,
        )
        self._prover = Prover(settings, on_line=self._log.add, secrets=secrets)

    async def run(self) -> Result:
        """Train and publish. Raises nothing but `CancelledError`: the result says what went wrong.

        The result holds the last lines of the log, whatever the end.
        """
        with self._log.listening():
            begins = run_begins(self._request.run_id)
            log.info("%s%d, execution %s", begins, self._request.attempt, self._execution_id)
            result = await self._end_with_result()
            reason = f": {result.error.sentence()}" if result.error else ""
            log.info("the execution ends as %s%s", result.status, reason)
        result = fit_message(result.model_copy(update={"log": self._log.lines()}))
        self._spans.end(result)
        crash_point("trainer.result.before")
        return result

    async def _end_with_result(self) -> Result:
        try:
            return await self._run_as_owner()
        except SupersededError as error:
            log.info("%s", error)
            return self._result("superseded")
        except PublishingError as error:
            return self._result("unpublished", error)
        except TrainingError as error:
            if isinstance(error, CancelledByUserError) and self._outcome is not None:
                await withdraw(self._request.run_id, self._settings)
            return self._result("failed", error)
        except Exception as error:
            # The exception's text may contain text of the dataset or a signed URL.
            log.error("%s", describe(error))
            unexpected = TrainingError(
                f"The trainer failed unexpectedly ({type(error).__name__}).", "Please report it to support."
            )
            return self._result("failed", unexpected)
        finally:
            await finish(self._poster.close())

    async def _run_as_owner(self) -> Result:
        async with ChannelClient(
            self._request.channel,
            external_job_id=self._external_job_id,
            execution_id=self._execution_id,
            patience_seconds=self._settings.channel_patience_seconds,
        ) as channel:
            crash_point("trainer.check_in.before")
            await channel.check_in()
            crash_point("trainer.check_in.after")
            return await self._guard(channel)

    async def _guard(self, channel: ChannelClient) -> Result:
        work = asyncio.create_task(self._work(channel))
        guards = [asyncio.create_task(self._keep_fence(channel)), asyncio.create_task(self._await_stop())]
        limit_seconds = self._request.limits.max_seconds
        # RunPod may start a crashed job again. Its earlier executions count towards the run's time limit.
        left_seconds = limit_seconds - await asyncio.to_thread(self._folder.seconds_of_run, self._request.run_id)
        try:
            done, _ = await asyncio.wait(
                [work, *guards],
                timeout=max(left_seconds - stop_margin_seconds(limit_seconds, self._settings.grace_seconds), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work in done:
                return work.result()
            reason = next((guard.exception() for guard in done), None) or TimeLimitError(
                f"The run used its {limit_seconds:.0f} seconds without finishing.",
                "Raise the job's cost cap, or lower its epochs or max_length.",
            )
            # An execution that lost the fence saves nothing: another owns the folder, or nobody wants the adapter.
            self._child.save_on_stop = not isinstance(reason, FenceLostError)
            await finish(_end([work]))
            raise self._as_unpublished(reason)
        finally:
            await finish(_end([work, *guards]))

    def _as_unpublished(self, reason: BaseException) -> BaseException:
        """The reason to stop, or a `GrantMissingError` if only proof and upload of a trained adapter are missing."""
        left = self._outcome or Outcome.read(self._folder.own)  # the child may have saved it after it was stopped
        if left is None or left.status != "trained" or not isinstance(reason, TimeLimitError | StoppedError):
            return reason
        self._outcome = left
        return GrantMissingError(
            f"{reason.message} The adapter is trained, but not published.",
            "It is kept on the volume; the next attempt tries and publishes it without training again.",
        )

    async def _keep_fence(self, channel: ChannelClient) -> None:
        stored: Progress | None = None
        while True:
            await self._until_heartbeat()
            latest = self._poster.latest
            try:
                if latest is None or latest == stored:
                    await channel.check_in()
                elif await channel.heartbeat(fit_heartbeat(latest)):
                    stored = latest
            except ChannelUnreachableError as error:
                # An unreachable database does not mean that the fence is lost: if another execution had taken over,
                # the database would refuse this one's next call. So go on training.
                log.warning("heartbeat: %s", error)
            await self._note_seconds()

    async def _until_heartbeat(self) -> None:
        """Wait for the next heartbeat, or until a stage begins: what a stage takes is known by when it was told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.heartbeat_seconds):
                await self._stage_begins.wait()
        self._stage_begins.clear()

    async def _await_stop(self) -> None:
        await self.stop.wait()
        raise StoppedError(
            "The GPU machine was taken away while training.", "The next attempt goes on from the checkpoint."
        )

    async def _work(self, channel: ChannelClient) -> Result:
        check_init_adapter(self._request)
        gpus = gpus_for(self._request.gpu_config.count, visible_gpus(os.environ))
        self._report(Stage.SETUP)
        with naming_full_disks(self._volume):
            async with self._folder_lock:
                self._folder.take(self._request.run_id)
            await asyncio.to_thread(
                remove_stale_jobs, self._volume, keep=self._folder, keep_days=self._settings.keep_days
            )
        self._report(Stage.DOWNLOADING)
        dataset = self._folder.own / "dataset"
        dataset_sha256 = await download_dataset(self._request.dataset, dataset)
        fingerprint = fingerprint_of(self._request, dataset_sha256)
        finished = self._folder.finished_artifact(fingerprint)
        if finished is None:
            task = self._task(self._folder, dataset_sha256, fingerprint, gpus)
            if self._request.init_adapter is not None:
                await download_adapter(self._request.init_adapter, task.init_adapter_folder)
            outcome = await self._train(task)
            if outcome.status != "trained":
                return self._result("failed", outcome=outcome)
            artifact = task.artifact
        else:
            artifact, outcome = finished
            outcome.summary.notes.append("An earlier attempt had trained this adapter; it was published as it was.")
        self._outcome = outcome
        crash_point("trainer.save.after")
        self._report(Stage.SAVING)
        await self._prover.prove(proof_task(self._request, self._folder, artifact, outcome, self._settings), outcome)
        outcome.summary.execution_seconds = self._seconds()
        self._report(Stage.UPLOADING)
        await serve(artifact, outcome, self._request, self._settings, is_current=self._folder.is_owned)
        manifest = await publish(
            artifact, outcome, self._request, channel, grant_poll_seconds=self._settings.grant_poll_seconds
        )
        self._is_removing_folder = True
        async with self._folder_lock:
            await asyncio.to_thread(self._folder.remove)
        return Result(
            run_id=manifest.run_id,
            status="completed",
            # The worker reads the whole curve from the stored manifest.
            manifest=manifest.model_copy(update={"points": []}),
            metrics=manifest.metrics,
            summary=manifest.summary,
            points=self._thin(manifest.points, manifest.summary),
        )

    async def _train(self, task: Task) -> Outcome:
        """Train. If memory runs out, or compiling fails, train on in a new process that needs less."""
        self._report(Stage.PREPARING)  # the child reports it only after some seconds: it imports torch first
        while True:
            outcome = await self._child.train(task)
            if outcome.retry is None:
                return outcome
            log.warning("the training goes on in a new process: %s", outcome.error.message if outcome.error else "")
            task = task.model_copy(update=outcome.retry.model_dump())

    def _task(self, folder: JobFolder, dataset_sha256: str, fingerprint: str, gpus: list[str | None]) -> Task:
        request, settings = self._request, self._settings
        adapter = request.init_adapter
        return Task(
            job_id=request.job_id,
            run_id=request.run_id,
            execution_id=self._execution_id,
            fingerprint=fingerprint,
            dataset=folder.own / "dataset",
            dataset_sha256=dataset_sha256,
            hyperparameters=request.hyperparameters,
            gpus=gpus,
            gpu_config=request.gpu_config,
            init_adapter=InitAdapter.model_validate(adapter.model_dump()) if adapter else None,
            job_folder=folder.path,
            folder=folder.own,
            volume=self._settings.models_volume or self._volume,
            archive_name=request.output.archive_name,
            chart_points=request.limits.chart_points,
            checkpoint_minutes=settings.checkpoint_minutes,
            compile=settings.compile,
            trust_remote_code=settings.trust_remote_code,
            quantised_cache_gb=settings.quantised_cache_gb,
        )

    def _take_progress(self, progress: Progress) -> None:
        self._spans.enter(progress.stage)
        if self._poster.latest is None or self._poster.latest.stage != progress.stage:
            self._stage_begins.set()
        self._poster.update(progress.model_copy(update={"proves": True}))

    def _report(self, stage: Stage) -> None:
        run_id, execution_id = self._request.run_id, self._execution_id
        self._take_progress(
            Progress(run_id=run_id, execution_id=execution_id, stage=stage, progress=STAGE_PROGRESS[stage])
        )

    def _seconds(self) -> float:
        own = time.monotonic() - self._started
        return round(own + self._folder.seconds_of_run(self._request.run_id), 3)

    async def _note_seconds(self) -> None:
        if self._is_removing_folder:
            return
        async with self._folder_lock:
            try:
                # In a thread, because a network volume may be slow.
                await asyncio.to_thread(self._note_seconds_now)
            except OSError as error:
                # The note is only needed to bill a later execution. If the disk is full, the training reports it.
                log.warning("the seconds worked could not be noted on the volume (%s)", type(error).__name__)

    def _note_seconds_now(self) -> None:
        if self._folder.own.is_dir():
            self._folder.note_seconds(self._request.run_id, round(time.monotonic() - self._started, 3))

    def _thin(self, points: list[Point], summary: Summary) -> list[Point]:
        if not points:
            return []
        limit = min(self._request.limits.chart_points, _RESULT_POINTS)
        return thin_points(points, total_steps=summary.total_steps or points[-1].step, limit=limit)

    def _result(self, status: Any, error: TrainingError | None = None, outcome: Outcome | None = None) -> Result:
        latest, outcome = self._poster.latest, outcome or self._outcome
        result = Result(run_id=self._request.run_id, status=status, stage=latest.stage if latest else Stage.SETUP)
        if outcome is not None:
            result.error, result.metrics = outcome.error, outcome.metrics
            result.summary, result.points = outcome.summary, self._thin(outcome.points, outcome.summary)
            result.evaluation, result.application = outcome.evaluation, outcome.application
        if latest is not None and not result.points:
            # The outcome of a child that failed or died has no curve; take what it reported before.
            result.summary.total_steps = result.summary.total_steps or latest.total_steps
            result.points = self._thin(latest.points, result.summary)
            result.summary.gpu_type = result.summary.gpu_type or latest.gpu_type
            result.summary.gpu_count = result.summary.gpu_count or latest.gpu_count
        if error is not None:
            result.error = error.as_protocol()
        result.summary.execution_seconds = self._seconds()
        return result


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def stop_margin_seconds(limit_seconds: float, grace_seconds: float) -> float:
    """How long before the time limit the work is stopped, to leave time for a checkpoint and for the result."""
    return min(grace_seconds + 30, limit_seconds / 10)


def fingerprint_of(request: Request, dataset_sha256: str) -> str:
    """A SHA-256 of everything that determines the trained adapter.

    A checkpoint or artifact with the same fingerprint was made by the same training.
    """
    chosen = request.hyperparameters
    inputs = {
        "recipe": RECIPE,
        "dataset": dataset_sha256,
        "format": request.dataset.format,
        # An alpha that is not set follows from the rank, and the worker writes it into the job's row. The value in
        # use is hashed, so that the retry of a job without an alpha has the same fingerprint.
        "hyperparameters": {**chosen.model_dump(mode="json"), "alpha": chosen.lora_alpha},
        "archive": request.output.archive_name,
    }
    if request.init_adapter is not None:
        inputs["init_adapter"] = {file.name: file.sha256 for file in request.init_adapter.files}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
