"""Plans what `deploy destroy` takes away: the endpoint, and volumes only where that is wanted."""

from __future__ import annotations

from lora_worker.deployment.planning import ENDPOINT, VOLUME, Action, ActionKind, Plan
from lora_worker.deployment.resources import Worker
from lora_worker.deployment.survey import Survey
from lora_worker.deployment.tables import EndpointTable


def plan_removal(specification: EndpointTable, survey: Survey, *, with_volumes: bool) -> Plan:
    """Return what has to be deleted. Volumes stay, with what they hold, unless `with_volumes`.

    Raises:
        DeploymentError: there are two resources of one name.
    """
    found = survey.endpoint(specification.name)
    actions = [] if found is None else [Action(ActionKind.DELETE, ENDPOINT, specification.name, found.id)]
    for wanted in specification.volumes:
        volume = survey.volume(wanted.name)
        if volume is None:
            continue
        others = [
            endpoint.name or str(endpoint.id)
            for endpoint in survey.endpoints
            if volume.id in (endpoint.network_volumes or ()) and (found is None or endpoint.id != found.id)
        ]
        actions.append(_removal_of_volume(wanted.name, volume.id, others, with_volumes=with_volumes))
    return Plan(tuple(actions))


def _removal_of_volume(name: str, id_: str | None, others: list[str], *, with_volumes: bool) -> Action:
    if others:
        return Action(ActionKind.KEEP, VOLUME, name, id_, note=f"the endpoint {others[0][:100]} uses it, too")
    if not with_volumes:
        return Action(ActionKind.KEEP, VOLUME, name, id_, note="it is billed on; --with-volumes deletes it, too")
    return Action(ActionKind.DELETE, VOLUME, name, id_, note="with the base models and checkpoints that it holds")


def busy_note(workers: list[Worker]) -> str:
    """Return a sentence about workers that are at a job; empty if none is."""
    busy = sum(worker.status == "RUNNING" for worker in workers)
    return f"{busy} of its workers are at a job, which ends with it" if busy else ""
