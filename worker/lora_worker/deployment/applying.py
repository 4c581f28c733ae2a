"""Carries out plans, one action after the other. Whatever stops it, the next plan begins with what is there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from lora_worker.deployment.endpoint_settings import endpoint_change, new_endpoint
from lora_worker.deployment.planning import ENDPOINT, VOLUME, Action, ActionKind, plan_deployment
from lora_worker.deployment.releasing import read_or_refuse
from lora_worker.deployment.resources import Endpoint, NetworkVolume, NewVolume, VolumeChange
from lora_worker.deployment.rest import RunPodApi
from lora_worker.deployment.survey import Resource, Survey, look_at_resources
from lora_worker.deployment.tables import EndpointTable
from lora_worker.errors import CreationInDoubtError, DeploymentError, ServiceRefusedError

_MAX_CREATIONS = 3
_LOOK_AFTER_SECONDS = (1.0, 3.0, 8.0)
"""When to look for a resource whose creation was in doubt: a list may show it a little later."""
_DETACH_LOOKS, _DETACH_SECONDS = 6, 5.0
"""How often, and after which time, to try again to delete a volume that a deleted endpoint's workers still hold."""
_CONFLICT = 409


@dataclass
class Applier:
    """Carries out the actions of a plan. `say` is told of each that is done, in one line."""

    api: RunPodApi
    specification: EndpointTable
    say: Callable[[str], None] = lambda _: None

    async def apply(self, actions: tuple[Action, ...], survey: Survey) -> Endpoint:
        """Make RunPod what the specification wants, and return the endpoint as it is afterwards.

        Args:
            actions: those of a plan that was made from this survey.
            survey: what there was when the plan was made.

        Raises:
            ServiceError: RunPod refused a call or failed. What was done before stays.
            DeploymentError: RunPod took the calls, and its state is another one than what they asked for.
        """
        volume_ids = survey.volume_ids(self.specification)
        registry_id = survey.registry_id(self.specification.registry)
        for action in actions:
            if action.kind is ActionKind.KEEP:
                continue
            if action.resource == VOLUME:
                volume_ids[action.name] = await self._apply_volume(action)
            else:
                await self._apply_endpoint(action, registry_id=registry_id, volume_ids=volume_ids)
        return await self._check(survey)

    async def _apply_volume(self, action: Action) -> str:
        (wanted,) = [volume for volume in self.specification.volumes if volume.name == action.name]
        if action.kind is ActionKind.UPDATE:
            assert action.id is not None
            await self.api.update_volume(action.id, VolumeChange(size=wanted.size_gb))
            self.say(f"enlarged the network volume {action.name} to {wanted.size_gb} GB")
            return action.id
        request = NewVolume(name=wanted.name, size=wanted.size_gb, data_center=wanted.data_center)
        if wanted.type:
            request = NewVolume(**request.model_dump(exclude_unset=True), type=wanted.type)

        async def look() -> NetworkVolume | None:
            return Survey(volumes=tuple(await self.api.list_volumes())).volume(wanted.name)

        return await self._create(lambda: self.api.create_volume(request), look, f"network volume {wanted.name}")

    async def _apply_endpoint(self, action: Action, *, registry_id: str | None, volume_ids: dict[str, str]) -> None:
        if action.kind is ActionKind.UPDATE:
            assert action.id is not None
            keys = [change.key for change in action.changes]
            # Variables are replaced as a whole, so those that a command has set since the plan must not get lost.
            variables = (await read_or_refuse(self.api, action.id)).env if "env" in keys else None
            change = endpoint_change(
                self.specification, keys, registry_id=registry_id, volume_ids=volume_ids, found_variables=variables
            )
            await self.api.update_endpoint(action.id, change)
            self.say(f"changed the endpoint {action.name}: {', '.join(keys)}")
            return
        variables = None
        if action.kind is ActionKind.REPLACE:
            assert action.id is not None
            variables = (await read_or_refuse(self.api, action.id)).env
            await self.api.delete_endpoint(action.id)
            self.say(f"deleted the endpoint {action.name} ({action.id})")
        request = new_endpoint(
            self.specification, registry_id=registry_id, volume_ids=volume_ids, found_variables=variables
        )

        async def look() -> Endpoint | None:
            return Survey(endpoints=tuple(await self.api.list_endpoints())).endpoint(action.name)

        await self._create(lambda: self.api.create_endpoint(request), look, f"endpoint {action.name}")

    async def _create(
        self,
        create: Callable[[], Awaitable[Resource]],
        look: Callable[[], Awaitable[Resource | None]],
        what: str,
    ) -> str:
        """Create a resource, and return its id. After a lost answer it is looked for before it is created again."""
        for attempt in range(1, _MAX_CREATIONS + 1):
            try:
                made: Resource | None = await create()
            except CreationInDoubtError as error:
                self.say(f"{error}; looking whether the {what} is there")
                made = await self._look_again(look)
                if made is None and attempt == _MAX_CREATIONS:
                    raise
            if made is not None:
                self.say(f"made the {what} ({made.id})")
                return str(made.id)
        raise AssertionError("the last attempt returns or raises")

    async def _look_again(self, look: Callable[[], Awaitable[Resource | None]]) -> Resource | None:
        for seconds in _LOOK_AFTER_SECONDS:
            await self.api.sleep(seconds)
            found = await look()
            if found is not None:
                return found
        return None

    async def _check(self, before: Survey) -> Endpoint:
        """Compare once more: RunPod may take a request and keep something else."""
        now = await look_at_resources(self.api)
        survey = replace(before, endpoints=now.endpoints, volumes=now.volumes)
        left = plan_deployment(self.specification, survey).needed
        if left:
            keys = ", ".join(f"{action.resource} {action.name}: {_what(action)}" for action in left)
            raise DeploymentError(f"RunPod took the changes and still differs from the file ({keys}): run plan again")
        endpoint = survey.endpoint(self.specification.name)
        if endpoint is None:
            raise DeploymentError(
                f"RunPod holds no endpoint named {self.specification.name}: run the same command again"
            )
        return endpoint


def _what(action: Action) -> str:
    return ", ".join(change.key for change in action.changes) or action.kind


async def delete(api: RunPodApi, actions: tuple[Action, ...], *, say: Callable[[str], None] = lambda _: None) -> None:
    """Delete the resources of these actions, the endpoint first: RunPod keeps a volume that is attached.

    Raises:
        ServiceError: RunPod refused a call or failed. What was deleted before is gone; the rest stays.
    """
    for action in sorted(actions, key=lambda action: action.resource != ENDPOINT):
        if action.kind is not ActionKind.DELETE or action.id is None:
            continue
        if action.resource == ENDPOINT:
            await api.delete_endpoint(action.id)
        else:
            await _delete_volume(api, action.id)
        say(f"deleted the {action.resource} {action.name} ({action.id})")


async def _delete_volume(api: RunPodApi, volume_id: str) -> None:
    for look in range(1, _DETACH_LOOKS + 1):
        try:
            await api.delete_volume(volume_id)
        except ServiceRefusedError as error:
            # The workers of an endpoint that was just deleted hold its volume until they have ended.
            if error.status != _CONFLICT or look == _DETACH_LOOKS:
                raise
            await api.sleep(_DETACH_SECONDS)
        else:
            return


async def look_for_endpoint(api: RunPodApi, name: str, *, made_by: str = "deploy apply") -> Endpoint:
    """Return the endpoint of a name; `made_by` is the command that makes it.

    Raises:
        DeploymentError: there is none, or there are two.
        ServiceError: RunPod refused a call or failed.
    """
    found = Survey(endpoints=tuple(await api.list_endpoints())).endpoint(name)
    if found is None:
        raise DeploymentError(f"RunPod holds no endpoint named {name}: `lora-worker {made_by}` makes it")
    return found
