"""Has the GPU endpoint merge a finished adapter into its base. The result, as large as that, stays on its volume."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from lora_contract.errands import MAX_EXPORT_SOURCES, ErrandResult, ExportPlace, ExportRequest
from lora_contract.exports import is_export_source
from lora_contract.protocol import AdapterFile
from lora_worker.deployment.prefetching import QUEUE_SECONDS, Sight, run_errand
from lora_worker.errors import ArtifactError, DeploymentError, ExportError, ObjectMissingError
from lora_worker.launchers.base import Guide
from lora_worker.services import Services
from lora_worker.submission.downloads import Published, find_published


async def export_on_endpoint(
    services: Services, job_id: UUID, *, base: str | None, seen: Callable[[Sight], None] = lambda _: None
) -> ExportPlace:
    """Have the trainings' endpoint merge a job's adapter; `seen` is called with each look at its job.

    `base` names another base on the hub than the adapter does.

    Raises:
        ArgumentError: the job has no adapter.
        ArtifactError: its files are not in the storage any more.
        ExportError: the trainer refused or failed; its sentence says why.
        DeploymentError: the endpoint's job was lost, or its image knows no exports.
        ServiceError: Supabase or the endpoint did not answer.
    """
    place = services.places.errands
    if place is None:
        raise DeploymentError(
            f"no endpoint of this worker takes exports: {services.launcher.guide.title} is asked for trainings only. "
            "Export on this machine, without --on-endpoint, or name an endpoint with a volume in LORA_WORKER_ROUTES "
            "(docs/routing.md)"
        )
    found, limit = await find_published(services, job_id), services.settings.max_run_seconds
    request = ExportRequest(
        job_id=str(job_id), base=base, files=await _signed(services, found, seconds=limit + QUEUE_SECONDS)
    )
    return _place_of(await run_errand(place.launcher, request, execution_seconds=limit, seen=seen))


async def _signed(services: Services, found: Published, *, seconds: float) -> list[AdapterFile]:
    bucket = services.settings.artifacts_bucket
    files = [file for file in found.manifest.files if is_export_source(file.path)]
    if not files or len(files) > MAX_EXPORT_SOURCES:
        raise ArtifactError(f"The manifest lists {len(files)} files of an adapter and its tokenizer: too many or none.")
    try:
        return [
            AdapterFile(
                name=file.path,
                url=await services.storage.sign_download(bucket, found.paths.final(file.path), seconds=seconds),
                sha256=file.sha256,
                bytes=file.bytes,
            )
            for file in files
        ]
    except ObjectMissingError:
        raise ArtifactError("The files of the adapter are not in the storage any more.") from None


def _place_of(result: ErrandResult) -> ExportPlace:
    if result.error is not None:
        raise ExportError(result.error.sentence())
    if result.export is None:
        raise DeploymentError("the endpoint's answer tells no place of the export: does its image hold this release?")
    return result.export


def fetching(place: ExportPlace, guide: Guide) -> str:
    """Say where the export is, and how it is fetched, as two sentences. `guide` is that of the endpoint's launcher.

    RunPod opens volumes of some data centres by the protocol of S3 (docs.runpod.io/storage/s3-api).
    """
    where = f"The export is on the endpoint's volume, in {place.folder}/."
    if not place.volume_id or not place.data_center:
        return f"{where} {guide.volume}"
    region = place.data_center.lower()
    return (
        f"{where} Where RunPod opens {place.data_center} by S3, this fetches it: aws s3 cp --recursive "
        f"s3://{place.volume_id}/{place.folder}/ DIR --region {region} --endpoint-url https://s3api-{region}.runpod.io"
    )
