"""Compares what a file wants with what RunPod has, and lists what has to be done. Pure: nothing is called here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lora_contract.names import nearest
from lora_worker.deployment.catalog import PoolOffer, offers
from lora_worker.deployment.endpoint_settings import found_settings, wanted_settings
from lora_worker.deployment.resources import Endpoint, NetworkVolume, has_fixed_tag
from lora_worker.deployment.survey import Survey
from lora_worker.deployment.tables import EndpointTable, Volume
from lora_worker.errors import DeploymentError

ENDPOINT, VOLUME = "endpoint", "network volume"

_USD_PER_GB_AND_MONTH = 0.07
"""RunPod's price of a standard network volume up to a terabyte (docs, August 2026)."""


class ActionKind(StrEnum):
    """What has to be done with a resource."""

    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    KEEP = "keep"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs, as texts. `key` is that of `deploy.toml`. Values of variables are never shown."""

    key: str
    now: str
    wanted: str


@dataclass(frozen=True, slots=True)
class Action:
    """What has to be done with one resource, and why. `id` is None for one that does not exist."""

    kind: ActionKind
    resource: str
    name: str
    id: str | None = None
    changes: tuple[Change, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be done, in this order; what the GPUs cost; and what an operator should know."""

    actions: tuple[Action, ...]
    offers: tuple[PoolOffer, ...] = ()
    notes: tuple[str, ...] = field(default=())
    most_usd_per_hour: float | None = None
    """What all workers together cost in an hour at the most; None where the catalog tells no price."""
    always_usd_per_hour: float | None = None
    """What those cost that are always on; None where the catalog tells no price."""

    @property
    def needed(self) -> tuple[Action, ...]:
        """The actions that change something."""
        return tuple(action for action in self.actions if action.kind is not ActionKind.KEEP)


def plan_deployment(specification: EndpointTable, survey: Survey) -> Plan:
    """Return what brings RunPod to what the specification wants.

    Raises:
        DeploymentError: it can't be brought there, or nothing tells which resource is meant; one sentence.
    """
    registry_id = survey.registry_id(specification.registry)
    found = survey.endpoint(specification.name)
    volumes = [_plan_volume(volume, survey) for volume in specification.volumes]
    endpoint = _plan_endpoint(specification, found, survey, registry_id)
    offered = offers(specification, survey)
    prices = [offer.usd_per_hour for offer in offered if offer.usd_per_hour is not None]
    return Plan(
        actions=(*volumes, endpoint),
        offers=offered,
        most_usd_per_hour=round(max(prices) * specification.workers.max, 2) if prices else None,
        always_usd_per_hour=round(max(prices) * specification.workers.always_on, 2) if prices else None,
        notes=(
            *_detached(specification, found, survey),
            *_place_notes(specification, survey),
            *_image_notes(specification),
        ),
    )


def _plan_volume(wanted: Volume, survey: Survey) -> Action:
    found = survey.volume(wanted.name)
    if found is None:
        return Action(ActionKind.CREATE, VOLUME, wanted.name, note=_volume_note(wanted))
    fault = _volume_fault(wanted, found)
    if fault:
        raise DeploymentError(fault)
    if found.size is not None and found.size == wanted.size_gb:
        return Action(ActionKind.KEEP, VOLUME, wanted.name, found.id)
    change = Change("size_gb", _shown(found.size), str(wanted.size_gb))
    return Action(ActionKind.UPDATE, VOLUME, wanted.name, found.id, (change,), note="it can't be reduced again")


def _volume_note(wanted: Volume) -> str:
    price = (
        "" if wanted.type == "HIGH_PERFORMANCE" else f", about ${wanted.size_gb * _USD_PER_GB_AND_MONTH:.2f} a month"
    )
    return f"{wanted.size_gb} GB in {wanted.data_center}{price}"


def _volume_fault(wanted: Volume, found: NetworkVolume) -> str | None:
    """Explain in one sentence why a volume can't become what is wanted; None if it can."""
    other_name = "give the new volume another name in the file, or delete this one (and what it holds) first"
    if found.data_center != wanted.data_center:
        return (
            f"the network volume {wanted.name} is in {_shown(found.data_center)}, and the file says "
            f"{wanted.data_center}: a volume can't move; {other_name}"
        )
    if wanted.type and found.type and found.type != wanted.type:
        return f"the network volume {wanted.name} is of type {found.type}, which can't be changed: {other_name}"
    if found.size is not None and found.size > wanted.size_gb:
        return (
            f"the network volume {wanted.name} has {found.size} GB, and the file says {wanted.size_gb}: a volume can't "
            f"be reduced; write size_gb = {found.size}"
        )
    return None


def _plan_endpoint(
    specification: EndpointTable, found: Endpoint | None, survey: Survey, registry_id: str | None
) -> Action:
    name = specification.name
    if found is None:
        return Action(ActionKind.CREATE, ENDPOINT, name, note=specification.image)
    reason = _replacement_reason(found)
    if reason:
        return Action(ActionKind.REPLACE, ENDPOINT, name, found.id, note=f"{reason}; its jobs end, and its id changes")
    names = {volume.id: volume.name or volume.id for volume in survey.volumes if volume.id}
    changes = differences(wanted_settings(specification, registry_id, found.env), found_settings(found, names))
    kind = ActionKind.UPDATE if changes else ActionKind.KEEP
    return Action(kind, ENDPOINT, name, found.id, changes, note=_gone_note(changes))


def _replacement_reason(found: Endpoint) -> str | None:
    if found.type == "LOAD_BALANCER":
        return "it balances load, which can't be changed, and jobs need a queue"
    return "it runs on CPUs, and an endpoint can't change to GPUs" if found.cpu else None


def _gone_note(changes: tuple[Change, ...]) -> str:
    gone = any("(gone)" in change.now for change in changes if change.key == "volumes")
    return "a volume is gone with all it held: run `lora-worker deploy prefetch` afterwards" if gone else ""


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return the settings that differ."""
    changed = [key for key in wanted if wanted[key] != found[key]]
    return tuple(_change(key, wanted[key], found[key]) for key in changed)


def _change(key: str, wanted: Any, found: Any) -> Change:
    if key == "env":
        # Somebody may have put a secret into a variable of the endpoint.
        differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        now = ", ".join(f"{name} is {'set' if name in found else 'not set'}" for name in differing)
        then = ", ".join(f"{name} {'from the file' if name in wanted else 'taken out'}" for name in differing)
        return Change(key, now[:300], then[:300])
    return Change(key, _shown(found), _shown(wanted))


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))[:300] or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)[:300]


def _detached(specification: EndpointTable, found: Endpoint | None, survey: Survey) -> list[str]:
    """Tell of volumes that the endpoint has and the file does not name: they stay, and cost money."""
    wanted = {volume.name for volume in specification.volumes}
    ids = set((found.network_volumes if found else None) or ())
    left = [volume for volume in survey.volumes if volume.id in ids and volume.name not in wanted]
    return [
        f"the network volume {volume.name} is taken from the endpoint and kept: it is billed until it is deleted in "
        "RunPod's console"
        for volume in left[:20]
    ]


def _place_notes(specification: EndpointTable, survey: Survey) -> list[str]:
    known = {place.id: place for place in survey.data_centers if place.id}
    notes = []
    for name in specification.placement:
        place = known.get(name)
        if place is None:
            near = nearest(name, known)
            notes.append(f"RunPod's catalog has no data centre {name}" + (f"; {near} may be meant" if near else ""))
    for volume in specification.volumes:
        place = known.get(volume.data_center)
        if place is not None and place.network_volume_types == []:
            notes.append(f"the data centre {volume.data_center} has no network volumes, as the catalog says")
    return notes


def _image_notes(specification: EndpointTable) -> list[str]:
    if has_fixed_tag(specification.image):
        return []
    name = specification.image.rpartition("/")[2].partition(":")[0]
    return [f"the image {name} has no tag that stays: machines keep an earlier copy, and run it; name a version"]
