"""Lists versions, and puts those together that belong together."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from lora_worker.database.version_rows import VersionFilter, VersionRow
from lora_worker.versions.best import Verdict, choose_best
from lora_worker.versions.version import Version, version_of


class ListsVersions(Protocol):
    """What listing versions needs of `DatabaseCalls`."""

    def training_versions(self, wanted: VersionFilter) -> Awaitable[list[VersionRow]]:
        """List versions of models, newest first."""


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


async def list_versions(queue: ListsVersions, wanted: VersionFilter) -> list[Version]:
    """Return versions, newest first.

    Raises:
        ServiceError: the database did not answer.
    """
    return [version_of(row) for row in await queue.training_versions(wanted)]


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
