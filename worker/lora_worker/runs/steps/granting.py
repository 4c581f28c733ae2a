"""The answer to a trainer that wants to publish: a signed upload URL for each file, sealed with the run's token."""

from __future__ import annotations

from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from lora_contract.crash_points import crash_point
from lora_contract.error_codes import Fault
from lora_contract.grants import seal_urls
from lora_contract.protocol import MANIFEST_NAME, ArtifactFile
from lora_worker.database.rows import places_of
from lora_worker.errors import ServiceError
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import FAULTS_SEEN
from lora_worker.runs.outcomes.failures import Failure
from lora_worker.runs.state.events import Granted, GrantPutOff, StopDecided
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.storage.artifact_paths import ArtifactPaths

log = structlog.get_logger(__name__)

_FILES = TypeAdapter(list[ArtifactFile])

_INVALID = Failure(
    "upload_request_invalid",
    Fault.PERMANENT,
    "The training asked to store files that can't be stored. Please report it to support.",
)


async def answer(held: HeldRun, request: Any) -> Granted | GrantPutOff | StopDecided | None:
    """Answer an upload request; None for a run that can't be granted anything.

    The trainer waits for its grant, but the run's polls, limits and end wait for nothing: a request that can't be
    answered now is left for the next cycle. A request that can't be read ends the run, since it would never be granted.

    Raises:
        LeaseLostError: the run is another worker's now.
    """
    try:
        files = _FILES.validate_python(request)
    except ValidationError as error:
        log.error("upload request unreadable", action=Action.UPLOAD_REQUEST_UNREADABLE, places=places_of(error))
        return StopDecided(_INVALID)
    try:
        return await _grant(held, request, [file.path for file in files])
    except ServiceError as error:
        FAULTS_SEEN.labels(error.service).inc()
        if held.services.repeats.is_due((held.run_id, "upload grant"), str(error)):
            log.warning("upload not granted yet", action=Action.UPLOAD_PUT_OFF, problem=str(error))
        return GrantPutOff(str(error))


async def _grant(held: HeldRun, request: list[dict[str, Any]], paths: list[str]) -> Granted | None:
    run, services = held.assignment.run, held.services
    if held.assignment.job is None or held.token is None:
        # Without the trainer's token its grant can't be sealed: sealed with another one, it would make the trainer
        # fail. Without a grant the trainer leaves the adapter on its volume, and the next attempt publishes that.
        return None
    bucket, artifact = services.settings.artifacts_bucket, ArtifactPaths.of(run)
    urls = {path: await services.storage.sign_upload(bucket, artifact.staged(path)) for path in [*paths, MANIFEST_NAME]}
    crash_point("worker.grant.before")
    held.require_lease()
    sealed = seal_urls(held.token, urls)
    granted = await services.queue.grant_upload(run.id, run.lease_token, request=request, sealed_urls=sealed)
    crash_point("worker.grant.after")
    if granted:
        log.info("upload granted", action=Action.UPLOAD_GRANTED, files=len(paths))
    else:
        log.info("upload request changed", action=Action.UPLOAD_REQUEST_CHANGED, files=len(paths))
    return Granted()
