"""What the database answers about versions of models, and about the stable names of some of them.

A newer schema may add keys. Times are ISO 8601 texts.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired
from uuid import UUID

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

_open = with_config(ConfigDict(extra="allow"))


class VersionFilter(TypedDict):
    """Which versions `training_versions` lists; a key that is missing or null asks for nothing."""

    of: NotRequired[str | None]
    """The id of a dataset, a model or a job."""
    user_id: NotRequired[str | None]
    limit: NotRequired[int | None]
    """50 where it is missing, 200 at most."""


@_open
class VersionRow(TypedDict):
    """A version of a model; an element of `training_versions`."""

    id: UUID
    """That of its row of `model_artifacts`, and of the run that made it; in the newer queue of the run alone."""
    queue: Literal["training_jobs", "pipeline_training_jobs"]
    job_id: UUID
    run_id: UUID | None
    """None for a model that another program has stored: nothing of it was verified."""
    user_id: UUID
    name: str | None
    version: str | None
    """Such as `1.2.0`; the newer queue has no column for it."""
    dataset_id: str | None
    dataset_name: str | None
    parent_id: UUID | None
    made_at: str | None
    deleted: bool
    base_model: str | None
    method: str | None
    measured: dict[str, Any] | None
    """What the training has brought, as `read_measured` reads it; None for one of a trainer of before."""
    figures: dict[str, float]
    """By the names of `quality_metrics`; a figure that was not measured is missing."""
    aliases: list[str]


class RollbackTarget(TypedDict):
    """The move to which a rollback of an alias leads."""

    number: int
    run_id: UUID
    job_id: UUID
    adapter: str


@_open
class AliasRow(TypedDict):
    """A stable name and where it leads; an element of `list_training_aliases`."""

    name: str
    """Without the ending `:live`."""
    user_id: UUID
    number: int
    """That of its latest move; whoever moves it next names the number that he has seen."""
    run_id: UUID | None
    """None once the rows of the run that made the adapter are gone."""
    job_id: UUID | None
    adapter: str
    """The name that the adapter has for itself at the endpoint."""
    base_model: str | None
    moved_at: str
    moved_by: str
    deleted: bool
    """Whether the adapter was deleted: then the name can't be served."""
    placed: bool
    """Whether the adapter of the latest move lies under the alias' name on the endpoint's volume."""
    served: bool
    """Whether every machine of the endpoint answers with it."""
    problem: str | None
    rollback: RollbackTarget | None


@_open
class AliasMove(TypedDict):
    """One move of an alias; an element of `training_alias_history`."""

    number: int
    moved_at: str
    moved_by: str
    run_id: UUID | None
    job_id: UUID | None
    adapter: str
    from_run_id: UUID | None
    from_job_id: UUID | None
    restores: int | None
    """Of a rollback: the earlier move to which it went back."""


class EndpointRelease(TypedDict):
    """Answer of `claim_endpoint_release`."""

    release: bool
    """Whether the endpoint's machines are to be replaced now; else only to be looked at."""
    old_workers: list[str]
    """The machines that were there at the last replacement; it is over when none of them is left."""


class ReleaseNote(TypedDict, total=False):
    """Argument of `note_endpoint_release`."""

    released: bool
    """Whether the replacement was asked for, after the claim."""
    old_workers: list[str]
    done: bool
    """Whether none of the old machines is left."""
    problem: str | None
    """Why it is not done yet, as a clause for the operator."""


class AliasChange(TypedDict):
    """Argument of `move_training_alias`."""

    name: str
    run_id: str
    adapter: str
    moved_by: str
    number: int
    """That of the latest move as the caller saw it; 0 where there was no such alias."""
    restores: int | None


class AliasMoved(TypedDict):
    """Answer of `move_training_alias`."""

    moved: bool
    reason: str | None
    """Why nothing was moved, as a sentence without its end."""
    alias: AliasRow | None
    """As it stands now; None where there is none."""
