"""The steps from a claimed run to an accepted launch: obstacles, preflight, request, intent, POST, record.

Each step returns what happened; `advance.launch` takes them one after another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.error_codes import ErrorCode, Fault
from lora_contract.protocol import Channel, DatasetRef, Limits, OutputRef, Request
from lora_contract.serving import serving_name
from lora_contract.tracing import context_of
from lora_worker.configuration.keys import public_fault, read_key
from lora_worker.configuration.settings import Settings
from lora_worker.configuration.tokens import token_sha256
from lora_worker.database.job_keys import unread_keys
from lora_worker.database.submission_rows import TRIAL_NAME
from lora_worker.datasets import preflight
from lora_worker.datasets.init_adapters import sign_files
from lora_worker.errors import (
    DatasetPendingError,
    LaunchInDoubtError,
    LaunchRefusedError,
    LeaseLostError,
    PreflightError,
    ServiceRefusedError,
    ServiceUnavailableError,
)
from lora_worker.launchers.places import Place
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import LAUNCHED
from lora_worker.runs.outcomes.failures import NO_GPU_THERE, Failure
from lora_worker.runs.state.events import Ending, LaunchBegun, Launched, PutOff, Settled, StopDecided
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps.breakers import hold_back
from lora_worker.services import Services
from lora_worker.storage.artifact_paths import ArtifactPaths

log = structlog.get_logger(__name__)

_SIGNED_URL_MARGIN_SECONDS = 3600.0
_STOP_MARGIN_SECONDS = 120.0


def channel_fault(channel: Channel, settings: Settings, *, now: float) -> str | None:
    """Why a request with this channel must not be sent; None where it may."""
    if channel.key == settings.supabase_service_role_key.get_secret_value():
        return "SUPABASE_PUBLISHABLE_KEY holds the key of SUPABASE_SERVICE_ROLE_KEY"
    fault = public_fault(read_key(channel.key), now=now)
    return f"SUPABASE_PUBLISHABLE_KEY {fault}" if fault else None


async def find_obstacle(held: HeldRun, place: Place) -> PutOff | Settled | None:
    """Whether anything outside the job keeps it from its launch there: its bucket, or an open breaker. None: nothing.

    Raises:
        LeaseLostError: the run is another worker's.
        ServiceError: the database or the storage did not answer.
    """
    services = held.services
    try:
        await services.artifacts_bucket.require(held.assignment.run.job_id)
    except ServiceRefusedError as error:
        # Only the operator can mend the bucket. The job waits for that: it must neither fail, nor be trained for an
        # adapter that can't be stored.
        if services.repeats.is_due("artifacts bucket", str(error)):
            log.error("the storage can't take an adapter", action=Action.STORAGE_REFUSED, problem=str(error))
        return PutOff(str(error), services.settings.retry_base_seconds, stage="waiting_for_storage")
    return await hold_back(held, place.endpoint)


async def check_job(held: HeldRun, place: Place) -> preflight.Plan | Ending:
    """Check the job and its dataset: the plan of its launch there, or why the job ends before a GPU is paid for.

    Raises:
        ServiceError: the database or the storage did not answer.
    """
    try:
        plan = await preflight.check(held.assignment, held.services, place)
    except DatasetPendingError as error:
        # A claim leaves such jobs in the queue. Here the dataset is validated anew since, or the job names a file.
        return Ending(Failure(error.code, Fault.INFRASTRUCTURE, str(error)))
    except PreflightError as error:
        return Ending(Failure(error.code, Fault.PERMANENT, str(error)))
    job = held.assignment.job
    notes = unread_keys(job.hyperparameters, job.gpu_config) if job else []
    if notes:
        log.warning("a job has keys that nothing reads", action=Action.JOB_KEYS_UNREAD, notes=notes)
    return plan


async def prepare_request(held: HeldRun, plan: preflight.Plan) -> Request | PutOff | Ending:
    """The request for the trainer; put off while the settings would send it a key that must stay here.

    The job ends where the adapter with which it begins was removed meanwhile.

    Raises:
        ServiceError: the storage did not sign the URLs.
    """
    try:
        request = await _make_request(held, plan)
    except PreflightError as error:
        return Ending(Failure(error.code, Fault.PERMANENT, str(error)))
    settings = held.services.settings
    fault = channel_fault(request.channel, settings, now=held.services.now().timestamp())
    if fault is None:
        return request
    # The settings are checked when the worker starts. This second check costs nothing, and a leaked key much.
    log.error("the launch would hand out a key that must not leave", action=Action.LAUNCH_KEY_WITHHELD, problem=fault)
    return PutOff(fault, settings.retry_base_seconds)


async def _make_request(held: HeldRun, plan: preflight.Plan) -> Request:
    services, settings = held.services, held.services.settings
    run, job, dataset = held.assignment.run, held.assignment.job, held.assignment.dataset
    paths = ArtifactPaths.of(run)
    # A run that was launched before keeps its token, where this worker knows it: its first launch may still check in.
    token = held.token or services.tokens.of(run.id, None)
    assert token is not None
    assert job is not None
    assert dataset is not None
    seconds = plan.policy.ttl_seconds + _SIGNED_URL_MARGIN_SECONDS
    serves = settings.serve_adapters and plan.place.keeps_served_adapters
    url = await services.storage.sign_download(dataset.bucket, dataset.storage_path, seconds=seconds)
    return Request(
        job_id=str(job.id),
        run_id=str(run.id),
        attempt=run.attempt,
        dataset=DatasetRef(url=url, sha256=plan.survey.sha256, bytes=plan.survey.bytes, format=dataset.format),
        hyperparameters=plan.hyperparameters,
        gpu_config=plan.gpu_config,
        init_adapter=plan.init_adapter and await sign_files(plan.init_adapter, services, seconds=seconds),
        channel=Channel(
            url=settings.supabase_url,
            key=settings.supabase_publishable_key.get_secret_value(),
            token=token,
        ),
        output=OutputRef(
            bucket=settings.artifacts_bucket,
            prefix=paths.prefix,
            archive_name=paths.archive_name,
            serving_name=asked_name(job.id, dataset.name) if serves else None,
        ),
        limits=Limits(
            max_seconds=max(plan.policy.execution_seconds - _STOP_MARGIN_SECONDS, 60.0),
            grant_wait_seconds=settings.grant_wait_seconds,
            chart_points=settings.chart_points,
        ),
        traceparent=context_of(held.run_id).traceparent if services.traces.is_on else None,
    )


def asked_name(job_id: UUID, dataset_name: str) -> str | None:
    """The name by which the job's adapter shall be served; None for a trial.

    A trial's adapter is removed again at once, and an errand for that would cost more than the trial.
    """
    return None if dataset_name == TRIAL_NAME else serving_name(job_id)


async def begin_launch(
    held: HeldRun, request: Request, plan: preflight.Plan
) -> LaunchBegun | PutOff | StopDecided | None:
    """Write down that the run is about to be sent; None when it need not be sent any more.

    It is put off where others have taken the place's last slot meanwhile: the next cycle chooses anew. It is stopped
    where it was taken from its place before, and only the answer to that was lost.

    Raises:
        LeaseLostError: the run is another worker's.
        ServiceError: the database did not answer.
    """
    services, run, job = held.services, held.assignment.run, held.assignment.job
    assert job is not None
    crash_point("worker.launch.before_intent")
    held.require_lease()
    launched_with: dict[str, Any] = {
        "dataset_id": job.dataset_id and str(job.dataset_id),
        **plan.rate.model_dump(),
        "needs_proof": True,
        **({"init_adapter": {"id": str(plan.init_adapter.id)}} if plan.init_adapter else {}),
        # By this key the database knows that the volume may hold the adapter, and has it removed one day.
        **({"serving_name": request.output.serving_name} if request.output.serving_name else {}),
    }
    answer = await services.queue.begin_launch(
        run.id,
        run.lease_token,
        launcher=plan.place.launcher.name,
        endpoint=plan.place.endpoint,
        slots=plan.place.slots,
        token_sha256=token_sha256(request.channel.token),
        launched_with=launched_with,
    )
    if answer["reason"] == "lease_lost":
        raise LeaseLostError("the lease was lost before the launch")
    if answer["reason"] == "full":
        return PutOff(f"all slots of {plan.place.name} are taken", 0.0, exact_seconds=0.0, stage="waiting_for_gpu")
    if answer["reason"] == "withdrawn":
        return StopDecided(NO_GPU_THERE)
    if not answer["may_launch"]:
        # Cancelled or checked in meanwhile: the next renewal says so, and the next cycle acts on it.
        log.info("launch not needed", action=Action.LAUNCH_NOT_NEEDED, reason=answer["reason"])
        return None
    # The rows as they are now: the artifact's configuration is copied from them.
    columns: dict[str, Any] = {key: value for key, value in answer.items() if key in {"hyperparameters", "gpu_config"}}
    rows = {
        "job": job.model_copy(update=columns),
        "run": run.model_copy(update={"launched_with": launched_with}),
    }
    return LaunchBegun(plan.place.endpoint, request.channel.token, held.assignment.model_copy(update=rows))


def wake_url_of(services: Services, run_id: UUID) -> str | None:
    """Where the launcher may tell of the run; None where it can't reach this worker."""
    url = services.settings.public_url
    return f"{url}/wake/{run_id}.{services.tokens.wake_signature(run_id)}" if url else None


async def send(held: HeldRun, request: Request, plan: preflight.Plan) -> Launched | PutOff | Ending:
    """Send the run to the launcher.

    Raises:
        LeaseLostError: the lease ran out before.
    """
    services, launcher = held.services, plan.place.launcher
    crash_point("worker.launch.before_post")
    held.require_lease()
    try:
        policy = replace(plan.policy, wake_url=wake_url_of(held.services, held.assignment.run.id))
        external_job_id = await launcher.launch(request.model_dump(mode="json"), policy)
    except LaunchRefusedError as error:
        LAUNCHED.labels("refused").inc()
        if services.routes is not None and plan.place.name not in held.declined_by:
            # Another place may take it. This one is asked again only where all that fit the job have declined it.
            return PutOff(str(error), 0.0, exact_seconds=0.0, declined_by=plan.place.name)
        text = "The GPU provider refused the job's request. Please report it to support."
        return Ending(Failure(ErrorCode.REQUEST_INVALID, Fault.PERMANENT, text))
    except ServiceRefusedError as error:
        LAUNCHED.labels("refused").inc()
        # The key or the endpoint is wrong, which only the operator can mend: no job fails for it.
        if services.repeats.is_due(("launcher", launcher.endpoint), str(error)):
            log.error("the launcher refuses this worker", action=Action.LAUNCH_REFUSED, problem=str(error))
        return PutOff(str(error), services.settings.retry_base_seconds, refused_by=plan.place.name)
    except ServiceUnavailableError as error:
        LAUNCHED.labels("unavailable").inc()
        log.warning("launch put off", action=Action.LAUNCH_PUT_OFF, problem=str(error))
        base_seconds = services.settings.retry_base_seconds
        # One that asks for a pause takes it after that.
        refused_by = plan.place.name if error.retry_after_seconds is None else None
        return PutOff(str(error), base_seconds, exact_seconds=error.retry_after_seconds, refused_by=refused_by)
    except LaunchInDoubtError as error:
        LAUNCHED.labels("in_doubt").inc()
        log.warning("launch in doubt", action=Action.LAUNCH_IN_DOUBT, problem=str(error))
        return PutOff(str(error), services.settings.doubt_seconds, doubtful_endpoint=launcher.endpoint)
    LAUNCHED.labels("accepted").inc()
    crash_point("worker.launch.after_post")
    attempt = held.assignment.run.attempt
    log.info("launched", action=Action.LAUNCH_ACCEPTED, attempt=attempt, external_job_id=external_job_id)
    return Launched(external_job_id, launcher.endpoint, launcher.name)


async def record_launch(held: HeldRun, launched: Launched) -> None:
    """Write down the launcher's id of the run.

    Raises:
        ServiceError: the database did not answer. The run's trainer will tell the id when it checks in.
    """
    run, services = held.assignment.run, held.services
    await services.queue.record_launch(
        run.id,
        run.lease_token,
        launcher=launched.launcher,
        endpoint=launched.endpoint,
        external_job_id=launched.external_job_id,
    )
    crash_point("worker.launch.after_record")
