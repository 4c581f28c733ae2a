"""What the argument MODEL means: the id of a job or of an artifact, or a name that the endpoint knows itself."""

from __future__ import annotations

import re
from uuid import UUID

from lora_worker.database.measured import read_measured
from lora_worker.errors import ArgumentError
from lora_worker.launchers.places import Place
from lora_worker.services import Services

_MOST_CHARACTERS = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")


def check_name(text: str) -> str:
    """Return a name that may be sent to the endpoint.

    Raises:
        ArgumentError: no model is called so.
    """
    name = text.strip()
    # vLLM looks for a folder of this name: it must not lead out of the folder of adapters.
    if len(name) > _MOST_CHARACTERS or not _NAME.fullmatch(name) or ".." in name:
        raise ArgumentError("MODEL: give a job's id, an artifact's id, or the name of a model at the endpoint")
    return name


def id_of(text: str) -> UUID | None:
    """The id that the argument is; None where it is a name."""
    try:
        return UUID(text.strip())
    except ValueError:
        return None


async def served_name(services: Services, named: UUID) -> str:
    """Return the name by which the adapter of a job, or of an artifact, is called.

    Raises:
        ArgumentError: there is no such adapter, or it lies nowhere where an endpoint looks.
        ServiceError: Supabase did not answer.
    """
    versions = await services.queue.training_versions({"of": str(named)})
    found = next((one for one in versions if named in {one["id"], one["job_id"]}), None)
    if found is None or found["run_id"] is None:
        raise ArgumentError(f"MODEL: no job or artifact {named} has an adapter")
    if found["deleted"]:
        raise ArgumentError(f"MODEL: the adapter of job {found['job_id']} was deleted")
    # The manifest says what the container claimed. The run holds it only where it is a name that the worker asked for.
    name = read_measured(found["measured"]).serving_name
    if name is None:
        place = await _trained_at(services, found["job_id"], found["run_id"])
        raise ArgumentError(
            f"MODEL: the adapter of job {found['job_id']} was not put where an endpoint finds it: "
            f"{why_not_served(place)}; docs/serving.md says what else can be done"
        )
    return name


def why_not_served(place: Place | None) -> str:
    """Why an adapter has no name at the endpoint, as far as the place where it was trained tells; None: unknown."""
    if place is not None and not place.launcher.takes_errands:
        return f"it was trained by {place.launcher.name}, which puts none there"
    if place is not None and not place.serves:
        return f"it was trained at the endpoint {place.name} of the routing table, which does not serve"
    return "its trainer had no network volume or could not write there, its launcher puts none there, or it was removed"


async def _trained_at(services: Services, job_id: UUID, run_id: UUID) -> Place | None:
    """The place of a run; None where launches go there no more, or the run is not known."""
    details = await services.queue.training_job_details(job_id)
    endpoints = [run["endpoint"] for run in (details["runs"] if details else []) if run["run_id"] == str(run_id)]
    return services.places.at(endpoints[0]) if endpoints and endpoints[0] else None
