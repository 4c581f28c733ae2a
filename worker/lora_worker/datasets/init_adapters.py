"""Finds the earlier adapter with which a job asks to begin, among those of the job's own user."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from lora_contract.error_codes import ErrorCode
from lora_contract.names import base_model_name
from lora_contract.protocol import (
    ADAPTER_FILES,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    AdapterFile,
    AdapterRef,
    ArtifactFile,
)
from lora_worker.database.submission_rows import FoundAdapter
from lora_worker.errors import ArtifactError, ObjectMissingError, PreflightError
from lora_worker.services import Services
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.manifests import parse_manifest

_CODE = ErrorCode.INIT_ADAPTER_UNUSABLE
_MAX_SHOWN_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class InitAdapter:
    """An earlier adapter whose files are in the storage, and what its manifest says of it."""

    id: UUID
    """The artifact's id, which is that of the run that made it."""
    base_model: str
    base_revision: str | None
    folder: str
    """Where its files are, in the bucket for adapters, with a slash at the end."""
    files: tuple[ArtifactFile, ...]
    """Those of `ADAPTER_FILES`."""


async def find_init_adapter(named: str, user_id: UUID, base_model: str | None, services: Services) -> InitAdapter:
    """Find the adapter that a job begins with. `named` is the id of a model or of a job of either queue.

    Raises:
        PreflightError: the user has no such adapter, it was deleted, is not finished, or was trained on another base
            model. Another user's adapter gives the same text as none.
        ServiceError: the database or the storage did not answer.
    """
    found = await services.queue.training_init_adapter(user_id, _parse(named))
    run_id = _check_status(found, named)
    assert found is not None
    paths = ArtifactPaths.of_run(queue=found["queue"], job_id=found["job_id"], user_id=user_id, run_id=run_id)
    adapter = await _read(paths, run_id, named, services)
    if base_model is None or adapter.base_model != base_model_name(base_model):
        raise _refusal(
            f"the adapter {_shown(named)} was trained on {adapter.base_model}, and this job is for {base_model}; "
            f"set base_model to {adapter.base_model}, or leave init_adapter out"
        )
    return adapter


def _parse(named: str) -> UUID:
    try:
        return UUID(named)
    except ValueError:
        raise _refusal(f"{_shown(named)} is no id; give that of one of your models or of its job") from None


def _check_status(found: FoundAdapter | None, named: str) -> UUID:
    """Return the run that made the adapter.

    Raises:
        PreflightError: there is none that may be used.
    """
    if found is None:
        raise _refusal(f"you have no adapter {_shown(named)}; give the id of one of your models or of its job")
    if found["status"] == "deleted":
        raise _refusal(f"the adapter {_shown(named)} was deleted; choose another, or leave init_adapter out")
    if found["status"] == "foreign":
        raise _refusal(f"the adapter {_shown(named)} was not made by this service, which can't check its files")
    if found["run_id"] is None:
        raise _refusal(
            f"the job of the adapter {_shown(named)} is {found['status']}; only that of a completed one can be used"
        )
    return found["run_id"]


async def _read(paths: ArtifactPaths, run_id: UUID, named: str, services: Services) -> InitAdapter:
    bucket, storage = services.settings.artifacts_bucket, services.storage
    content = await storage.read(bucket, paths.final(MANIFEST_NAME), max_bytes=MAX_MANIFEST_BYTES)
    gone = _refusal(f"the files of the adapter {_shown(named)} are not in the storage any more; choose another")
    if content is None:
        raise gone
    try:
        manifest = parse_manifest(content, run_id)
    except ArtifactError:
        raise gone from None
    files = tuple(file for file in manifest.files if file.path in ADAPTER_FILES)
    sizes = [await storage.size(bucket, paths.final(file.path)) for file in files]
    if len(files) < len(ADAPTER_FILES) or sizes != [file.bytes for file in files]:
        raise gone
    summary = manifest.summary
    if summary.base_model is None:
        raise _refusal(f"the adapter {_shown(named)} does not say on which base model it was trained; choose another")
    return InitAdapter(run_id, summary.base_model, summary.base_revision, paths.prefix, files)


async def sign_files(adapter: InitAdapter, services: Services, *, seconds: float) -> AdapterRef:
    """Sign URLs with which the trainer downloads the adapter for `seconds`.

    Raises:
        PreflightError: a file was removed meanwhile.
        ServiceError: the storage did not answer.
    """
    bucket = services.settings.artifacts_bucket
    try:
        files = [
            AdapterFile(
                name=file.path,
                url=await services.storage.sign_download(bucket, adapter.folder + file.path, seconds=seconds),
                sha256=file.sha256,
                bytes=file.bytes,
            )
            for file in adapter.files
        ]
    except ObjectMissingError:
        raise _refusal(
            f"the files of the adapter {adapter.id} are not in the storage any more; choose another"
        ) from None
    return AdapterRef(
        id=str(adapter.id), base_model=adapter.base_model, base_revision=adapter.base_revision, files=files
    )


def _refusal(clause: str) -> PreflightError:
    return PreflightError(_CODE, f"hyperparameters: init_adapter: {clause}.")


def _shown(named: str) -> str:
    return repr(named[:_MAX_SHOWN_CHARACTERS])
