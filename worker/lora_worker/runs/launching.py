"""From a claimed run to an accepted launch: preflight, intent, POST, record."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.protocol import (
    Channel,
    DatasetRef,
    ErrorCode,
    Fault,
    Limits,
    OutputRef,
    Request,
)
from lora_worker.configuration.keys import public_fault, read_key
from lora_worker.configuration.settings import Settings
from lora_worker.configuration.tokens import token_sha256
from lora_worker.database.job_keys import unread_keys
from lora_worker.database.rows import enrichment_of
from lora_worker.datasets import preflight
from lora_worker.errors import (
    DatasetPendingError,
    LaunchInDoubtError,
    LeaseLostError,
    PreflightError,
    ServiceRefusedError,
    ServiceUnavailableError,
)
from lora_worker.launchers.base import Policy
from lora_worker.observability.telemetry import LAUNCHED
from lora_worker.runs.breakers import hold_back
from lora_worker.runs.failures import WORKER_KILLED, Failure
from lora_worker.runs.progress_entries import make_report
from lora_worker.runs.settling import Ending
from lora_worker.storage.places import Places

if TYPE_CHECKING:
    from lora_worker.runs.held_run import Holding

log = structlog.get_logger(__name__)

_SIGNED_URL_MARGIN_SECONDS = 3600.0
_MAX_WAIT_SECONDS = 600.0
_STOP_MARGIN_SECONDS = 120.0


async def launch(holding: Holding) -> None:
    """Check the job and launch it; a permanent fault settles it as failed before a GPU is paid for.

    Raises:
        LeaseLostError: the run is another worker's.
        ServiceError: the database or the storage did not answer.
    """
    try:
        await holding.services.artifacts_bucket.require(holding.assignment.run.job_id)
    except ServiceRefusedError as error:
        # The operator's to mend, and no reason to fail anybody's job: a training whose adapter nothing takes.
        if holding.services.repeats.is_due("artifacts bucket", str(error)):
            log.error("the storage can't take an adapter", problem=str(error))
        _wait(holding, str(error), holding.services.settings.retry_base_seconds, stage="waiting_for_storage")
        return
    if await hold_back(holding):
        return
    async with AsyncExitStack() as slot:
        await slot.enter_async_context(holding.services.heavy_slots.take(alone=holding.is_suspect))
        plan = await _check(holding)
        if plan is None:
            return
        if not holding.is_suspect:
            # A suspect stays alone until it is launched: whoever comes next may end the worker.
            await slot.aclose()
        request = await _make_request(holding, plan)
        fault = channel_fault(request.channel, holding.services.settings, now=holding.services.now().timestamp())
        if fault:
            # The operator's to mend, and refused at start: this is for whatever gets past that.
            log.error("the launch would hand out a key that must not leave", problem=fault)
            _wait(holding, fault, holding.services.settings.retry_base_seconds)
            return
        await _post(holding, request, plan)


def channel_fault(channel: Channel, settings: Settings, *, now: float) -> str | None:
    """Why a request with this channel must not be sent; None where it may."""
    if channel.key == settings.supabase_service_role_key.get_secret_value():
        return "SUPABASE_PUBLISHABLE_KEY holds the key of SUPABASE_SERVICE_ROLE_KEY"
    fault = public_fault(read_key(channel.key), now=now)
    return f"SUPABASE_PUBLISHABLE_KEY {fault}" if fault else None


async def _check(holding: Holding) -> preflight.Plan | None:
    """The plan of a job that may be launched; None when it was settled as failed instead."""
    if not await holding.begin_handling("preflight"):
        await holding.finish(Ending(WORKER_KILLED))
        return None
    try:
        plan = await preflight.check(holding.assignment, holding.services)
    except DatasetPendingError as error:
        # A claim passes such jobs over; this dataset was validated anew, or is known by its file alone.
        await holding.finish(Ending(Failure(error.code, Fault.INFRASTRUCTURE, str(error))))
        return None
    except PreflightError as error:
        await holding.finish(Ending(Failure(error.code, Fault.PERMANENT, str(error))))
        return None
    run, job = holding.assignment.run, holding.assignment.job
    notes = unread_keys(job) if job else []
    if notes:
        log.warning("a job has keys that nothing reads", run_id=str(run.id), job_id=str(run.job_id), notes=notes)
    return plan


async def _make_request(holding: Holding, plan: preflight.Plan) -> Request:
    services, settings = holding.services, holding.services.settings
    run, job, dataset = holding.assignment.run, holding.assignment.job, holding.assignment.dataset
    places = Places.of(run)
    # A run that was launched before keeps its token, if that is known: the first launch may still check in.
    token = holding.token or services.tokens.of(run.id, None)
    assert token is not None
    assert job is not None
    assert dataset is not None
    url = await services.storage.sign_download(
        dataset.bucket, dataset.storage_path, seconds=plan.policy.ttl_seconds + _SIGNED_URL_MARGIN_SECONDS
    )
    return Request(
        job_id=str(job.id),
        run_id=str(run.id),
        attempt=run.attempt,
        dataset=DatasetRef(url=url, sha256=plan.survey.sha256, bytes=plan.survey.bytes, format=dataset.format),
        hyperparameters=plan.hyperparameters,
        gpu_config=plan.gpu_config,
        channel=Channel(
            url=settings.supabase_url,
            key=settings.supabase_publishable_key.get_secret_value(),
            token=token,
        ),
        output=OutputRef(bucket=settings.artifacts_bucket, prefix=places.prefix, archive_name=places.archive_name),
        limits=Limits(
            max_seconds=max(plan.policy.execution_seconds - _STOP_MARGIN_SECONDS, 60.0),
            grant_wait_seconds=settings.grant_wait_seconds,
            chart_points=settings.chart_points,
        ),
    )


async def _post(holding: Holding, request: Request, plan: preflight.Plan) -> None:
    services, run, job = holding.services, holding.assignment.run, holding.assignment.job
    assert job is not None
    launcher = services.launcher
    crash_point("worker.launch.before_intent")
    holding.require_lease()
    both_shapes = enrichment_of(
        job,
        plan.hyperparameters,
        plan.gpu_config,
        memory_gb=plan.price.memory_gb,
        price_per_hour=plan.price.price_per_hour,
    )
    launched_with = {"dataset_id": job.dataset_id and str(job.dataset_id), **plan.rate.model_dump()}
    refused = await services.queue.begin_launch(
        run.id,
        run.lease_token,
        launcher=launcher.name,
        endpoint=launcher.endpoint,
        token_sha256=token_sha256(request.channel.token),
        enrichment=both_shapes,
        launched_with=launched_with,
    )
    if refused == "lease_lost":
        raise LeaseLostError("the lease was lost before the launch")
    if refused is not None:
        # Cancelled or checked in meanwhile: the next renewal says so, and the next cycle acts on it.
        log.info("launch not needed", run_id=str(run.id), reason=refused)
        return
    holding.whereabouts.add(launcher.endpoint)
    # The database knows this token alone from here on, whatever an earlier launch was sent.
    holding.token = request.channel.token
    # As the row is now: the artifact's configuration is copied from it.
    holding.assignment = holding.assignment.model_copy(
        update={
            "job": job.model_copy(update=both_shapes),
            "run": run.model_copy(update={"launched_with": launched_with}),
        }
    )
    crash_point("worker.launch.before_post")
    holding.require_lease()
    external_job_id = await _send(holding, request.model_dump(mode="json"), plan.policy)
    if external_job_id is None:
        return
    crash_point("worker.launch.after_post")
    log.info("launched", run_id=str(run.id), job_id=str(job.id), attempt=run.attempt, external_job_id=external_job_id)
    # Known here and now, whatever becomes of the record: this worker polls it from the next cycle on.
    if holding.news.external_job_id is None:
        known = {"external_job_id": external_job_id, "endpoint": launcher.endpoint}
        holding.news = holding.news.model_copy(update=known)
    await services.queue.record_launch(
        run.id,
        run.lease_token,
        launcher=launcher.name,
        endpoint=launcher.endpoint,
        external_job_id=external_job_id,
    )
    crash_point("worker.launch.after_record")


async def _send(holding: Holding, payload: dict[str, Any], policy: Policy) -> str | None:
    """POST the run; None when it was not accepted, or nobody knows, and `launch_not_before` says what next."""
    services, run = holding.services, holding.assignment.run
    try:
        external_job_id = await services.launcher.launch(payload, policy)
    except ServiceRefusedError as error:
        LAUNCHED.labels("refused").inc()
        if error.status in {400, 413, 422}:
            text = "The GPU provider refused the job's request. Please report it to support."
            await holding.finish(Ending(Failure(ErrorCode.REQUEST_INVALID, Fault.PERMANENT, text)))
        else:
            # The key or the endpoint: the operator's to mend, and no reason to fail anybody's job.
            if services.repeats.is_due("launcher", str(error)):
                log.error("the launcher refuses this worker", problem=str(error))
            _wait(holding, str(error), services.settings.retry_base_seconds)
    except ServiceUnavailableError as error:
        LAUNCHED.labels("unavailable").inc()
        log.warning("launch put off", run_id=str(run.id), problem=str(error))
        _wait(holding, str(error), error.retry_after_seconds or services.settings.retry_base_seconds)
    except LaunchInDoubtError as error:
        LAUNCHED.labels("in_doubt").inc()
        log.warning("launch in doubt", run_id=str(run.id), problem=str(error))
        _wait(holding, str(error), services.settings.doubt_seconds)
    else:
        LAUNCHED.labels("accepted").inc()
        return external_job_id
    return None


def patience_seconds(base_seconds: float, tries: int) -> float:
    """How long a launch waits after so many tries: the base, doubled each time up to ten minutes."""
    # Bounded before it is a power: after a week of refusals it would fit no number.
    doublings = min(tries - 1, 16)
    return min(base_seconds * 2.0**doublings, max(_MAX_WAIT_SECONDS, base_seconds))


def _wait(holding: Holding, problem: str, base_seconds: float, *, stage: str = "waiting_for_gpu_provider") -> None:
    holding.put_off = problem
    holding.report = make_report(holding, {"current_stage": stage})
    holding.launch_tries += 1
    holding.launch_not_before = holding.services.clock() + patience_seconds(base_seconds, holding.launch_tries)
