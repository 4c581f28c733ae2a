"""Moves a stable name to a version, forth and back. What is refused is decided by pure functions.

The row of the alias says what shall be served. A worker's duty carries it out and confirms it, so a promotion that was
taken is never lost: this module only writes the row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from lora_worker.database.version_rows import AliasMoved, AliasRow
from lora_worker.deployment.answering import why_none
from lora_worker.errors import ArgumentError, PromotionRefusedError
from lora_worker.services import Services
from lora_worker.versions.listing import list_versions, version_of_job
from lora_worker.versions.version import Version

LIVE = ":live"
"""What the name of an alias has behind it at the endpoint, so that no adapter's own name is ever like it."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_NAME_CHARACTERS = 63
_FAMILY = 200
"""Among so many versions an alias of the same family is looked for."""


@dataclass(frozen=True, slots=True)
class Promoted:
    """An alias after a move: which version it leads to now, and where it led before."""

    alias: AliasRow
    label: str
    """How the version is called in sentences."""
    before: UUID | None
    """The job whose adapter it led to before; None for a new alias."""


def objection(version: Version, *, served_base: str, anyway: bool = False) -> str | None:
    """Why a version must not be served, as a sentence without its end; None if it may.

    `anyway` lifts only what is a matter of judgement: a model that became worse on general text.
    """
    if version.row["deleted"]:
        return f"the adapter of {version.label} was deleted"
    if version.row["run_id"] is None:
        return f"{version.label} was stored by another program than this worker, and nothing of it was verified"
    if not version.is_applied:
        return (
            f"nothing proves that the adapter of {version.label} changes the model's answers: its trainer was of a "
            "release before that proof; train it again"
        )
    if version.row["base_model"] != served_base:
        return f"{version.label} was trained on {version.row['base_model']}, and the endpoint serves {served_base}"
    if version.serving_name is None:
        return (
            f"the adapter of {version.label} is not on the endpoint's volume: its trainer had no volume to put it on, "
            "or it was removed there; give both endpoints the same volume (docs/serving.md), and train it again"
        )
    if version.guard_passed is False and not anyway:
        return f"{version.label} made the model worse on general text: --anyway promotes it all the same"
    return None


def checked_name(text: str) -> str:
    """Return the name of an alias; the ending `:live` may be given, too.

    Raises:
        ArgumentError: it is none.
    """
    name = text.removesuffix(LIVE)
    if not _NAME.fullmatch(name):
        raise ArgumentError(
            f"{text[:80]!r} is no name of an alias: write up to {_NAME_CHARACTERS} of a-z, 0-9, '.', '_' and '-', the "
            "first one a letter or a digit"
        )
    return name


def name_for(version: Version, family: Sequence[Version]) -> str:
    """Choose a name: the only one that the family has already, else one made of the dataset's name.

    Raises:
        ArgumentError: the family has several, or its dataset's name has no letter that a name may have.
    """
    held = sorted({name for other in family for name in other.row["aliases"]})
    if len(held) == 1:
        return held[0]
    if held:
        raise ArgumentError(f"versions of this model have several names ({', '.join(held[:5])}): choose one by --as")
    made = re.sub(r"[^a-z0-9._-]+", "-", (version.row["dataset_name"] or version.row["name"] or "").lower())
    made = made.strip("._-")[:_NAME_CHARACTERS]
    if not made:
        raise ArgumentError("the dataset's name has no letter for the name of an alias: give one by --as")
    return made


async def promote(services: Services, job_id: UUID, *, name: str | None, anyway: bool, by: str) -> Promoted:
    """Have an alias lead to the version of a job. Without a name, it is the one that its family has already.

    Raises:
        ArgumentError: there is no such version, or the name is none.
        PromotionRefusedError: it must not be served, or somebody else has moved the alias; the text says why.
        DeploymentError, ServiceError: database, storage or the account at the GPU cloud did not answer.
    """
    family = await list_versions(services.queue, {"of": str(job_id), "limit": _FAMILY})
    version = version_of_job(family, job_id)
    if version is None:
        raise ArgumentError(f"job {job_id} has no adapter that could be promoted")
    chosen = checked_name(name) if name is not None else name_for(version, family)
    return await _move(services, version, chosen, anyway=anyway, by=by)


async def roll_back(services: Services, name: str, *, by: str) -> Promoted:
    """Have an alias lead to its target before the present one, and at the next time to the one before that.

    Raises:
        ArgumentError: there is no such alias.
        PromotionRefusedError: no earlier target may be served, or somebody else has moved the alias.
        DeploymentError, ServiceError: as `promote`.
    """
    alias = await find_alias(services, name)
    back = alias["rollback"]
    if back is None:
        raise PromotionRefusedError(f"{alias['name']}{LIVE} has no earlier target whose adapter is still there")
    version = version_of_job(
        await list_versions(services.queue, {"of": str(back["job_id"]), "limit": _FAMILY}), back["job_id"]
    )
    if version is None:
        raise PromotionRefusedError(f"the adapter of job {back['job_id']}, the target before, is not there any more")
    # It was served before: whoever promoted it has judged the guard's finding.
    return await _move(services, version, alias["name"], anyway=True, by=by, restores=back["number"], seen=alias)


async def find_alias(services: Services, name: str) -> AliasRow:
    """Return an alias.

    Raises:
        ArgumentError: there is none of this name.
        ServiceError: the database did not answer.
    """
    chosen = checked_name(name)
    found = await services.queue.list_training_aliases(chosen)
    if not found:
        raise ArgumentError(f"there is no alias {chosen}{LIVE}: `lora-worker aliases` lists them")
    return found[0]


async def _move(
    services: Services,
    version: Version,
    name: str,
    *,
    anyway: bool,
    by: str,
    restores: int | None = None,
    seen: AliasRow | None = None,
) -> Promoted:
    endpoint = services.answering
    if endpoint is None:
        raise PromotionRefusedError(why_none(services.settings))
    if seen is None:
        seen = next(iter(await services.queue.list_training_aliases(name)), None)
    problem = objection(version, served_base=await endpoint.served_base(), anyway=anyway)
    if problem is not None:
        raise PromotionRefusedError(problem)
    assert version.serving_name is not None
    answer = await services.queue.move_training_alias(
        {
            "name": name,
            "run_id": str(version.id),
            "adapter": version.serving_name,
            "moved_by": by,
            "number": seen["number"] if seen else 0,
            "restores": restores,
        }
    )
    return Promoted(_moved(answer), version.label, seen["job_id"] if seen else None)


def _moved(answer: AliasMoved) -> AliasRow:
    if not answer["moved"] or answer["alias"] is None:
        raise PromotionRefusedError(answer["reason"] or "the database does not say why the alias was not moved")
    return answer["alias"]


def alias_value(alias: AliasRow) -> dict[str, Any]:
    """Return an alias as it is shown: its row, what it is called at the endpoint, and where it stands."""
    return {**alias, "called": alias["name"] + LIVE, "standing": standing(alias)}


def names_of(version: Version) -> list[str]:
    """Return the names by which the endpoint answers with a version: its aliases, then its adapter's own."""
    return [*(name + LIVE for name in version.row["aliases"]), *filter(None, [version.serving_name])]


def standing(alias: AliasRow) -> str:
    """Return where an alias stands on its way to the endpoint, as the end of a sentence that begins with its name."""
    if alias["deleted"]:
        return "leads to an adapter that was deleted: roll it back, or promote another version"
    if alias["served"]:
        return "is live"
    if alias["problem"]:
        return f"is not live yet: {alias['problem']}"
    if alias["placed"]:
        return "is on the endpoint's volume; the endpoint's workers are being replaced"
    return "waits for a worker to put it on the endpoint's volume"
