"""Reads versions with their manifests, and puts those together that belong together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from lora_worker.database.version_rows import VersionFilter, VersionRow
from lora_worker.errors import ArtifactError, ServiceError
from lora_worker.services import Services
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.published import read_manifest
from lora_worker.versions.best import Verdict, choose_best
from lora_worker.versions.version import Proofs, Version, figures_of, proofs_of

_AT_ONCE = 4
"""How many manifests are read side by side: each may be megabytes, and the worker has 256."""


@dataclass(frozen=True, slots=True)
class Family:
    """The versions of one dataset, or of one parent, newest first, and which of them is the best."""

    versions: tuple[Version, ...]
    verdict: Verdict

    @property
    def name(self) -> str:
        """What the family is called: the name of its newest dataset, else that of its newest version."""
        newest = self.versions[0].row
        return newest["dataset_name"] or newest["name"] or "a model without a name"


async def list_versions(services: Services, wanted: VersionFilter) -> list[Version]:
    """Return versions, newest first. Where a manifest can't be read, its version has no proofs.

    Raises:
        ServiceError: the database did not answer.
    """
    rows = await services.queue.training_versions(wanted)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def version(row: VersionRow) -> Version:
        async with slots:
            return Version(row, figures_of(row), await _proofs(services, row))

    return list(await asyncio.gather(*map(version, rows)))


async def _proofs(services: Services, row: VersionRow) -> Proofs | None:
    if row["run_id"] is None or row["deleted"]:
        return None
    paths = ArtifactPaths.of_run(queue=row["queue"], job_id=row["job_id"], user_id=row["user_id"], run_id=row["run_id"])
    try:
        return proofs_of(
            await read_manifest(services.storage, services.settings.artifacts_bucket, paths, row["run_id"])
        )
    except (ArtifactError, ServiceError):
        return None


def families_of(versions: Sequence[Version]) -> list[Family]:
    """Put versions together that have user and dataset in common, or of which one began with another; newest first."""
    found: list[list[Version]] = []
    for version in versions:
        related = [family for family in found if any(_are_related(version, other) for other in family)]
        joined = [*(other for family in related for other in family), version]
        found = [family for family in found if family not in related] + [joined]
    order = {version.id: place for place, version in enumerate(versions)}
    families = [sorted(family, key=lambda version: order[version.id]) for family in found]
    families.sort(key=lambda family: order[family[0].id])
    return [Family(tuple(family), choose_best(family)) for family in families]


def _are_related(one: Version, other: Version) -> bool:
    if one.row["user_id"] != other.row["user_id"]:
        return False
    same_data = one.row["dataset_id"] is not None and one.row["dataset_id"] == other.row["dataset_id"]
    return same_data or one.row["parent_id"] == other.id or other.row["parent_id"] == one.id


def version_of_job(versions: Sequence[Version], job_id: UUID) -> Version | None:
    """Return the version that a job made; None if it is not among these."""
    return next((version for version in versions if version.row["job_id"] == job_id), None)
