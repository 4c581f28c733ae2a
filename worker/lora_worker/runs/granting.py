"""The answer to a trainer that wants to publish: a signed upload URL for each file, sealed with the run's token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from pydantic import TypeAdapter, ValidationError

from lora_contract.crash_points import crash_point
from lora_contract.grants import seal_urls
from lora_contract.protocol import MANIFEST_NAME, ArtifactFile, Fault
from lora_worker.database.rows import places_of
from lora_worker.errors import ServiceError
from lora_worker.observability.telemetry import FAULTS_SEEN
from lora_worker.runs.failures import Failure
from lora_worker.storage.places import Places

if TYPE_CHECKING:
    from lora_worker.runs.held_run import Holding

log = structlog.get_logger(__name__)

_FILES = TypeAdapter(list[ArtifactFile])

_INVALID = Failure(
    "upload_request_invalid",
    Fault.PERMANENT,
    "The training asked to store files that can't be stored. Please report it to support.",
)


async def answer(holding: Holding, request: Any) -> None:
    """Grant an upload request; one that can't be granted now is left for the next cycle.

    The trainer waits for its grant, but the run's polls, limits and end wait for nothing. A request that can't
    be read is the run's failure: nobody will ever grant it.

    Raises:
        LeaseLostError: the run is another worker's now.
    """
    run_id = str(holding.assignment.run.id)
    try:
        files = _FILES.validate_python(request)
    except ValidationError as error:
        log.error("upload request unreadable", run_id=run_id, places=places_of(error))
        holding.stopping = _INVALID
        return
    try:
        await _grant(holding, request, [file.path for file in files])
    except ServiceError as error:
        FAULTS_SEEN.labels(error.service).inc()
        holding.put_off = str(error)
        if holding.services.repeats.is_due((run_id, "upload grant"), str(error)):
            log.warning("upload not granted yet", run_id=run_id, problem=str(error))


async def _grant(holding: Holding, request: list[dict[str, Any]], paths: list[str]) -> None:
    run, services = holding.assignment.run, holding.services
    if holding.assignment.job is None or holding.token is None:
        # Sealed with another token the grant would be of no use, and the trainer would fail at it. Without one it
        # leaves the adapter on its volume, and the next attempt publishes that.
        return
    bucket, places = services.settings.artifacts_bucket, Places.of(run)
    urls = {path: await services.storage.sign_upload(bucket, places.staged(path)) for path in [*paths, MANIFEST_NAME]}
    crash_point("worker.grant.before")
    holding.require_lease()
    sealed = seal_urls(holding.token, urls)
    granted = await services.queue.grant_upload(run.id, run.lease_token, request=request, sealed_urls=sealed)
    crash_point("worker.grant.after")
    holding.news = holding.news.model_copy(update={"upload_request": None})
    log.info("upload granted" if granted else "upload request changed", run_id=str(run.id), files=len(paths))
