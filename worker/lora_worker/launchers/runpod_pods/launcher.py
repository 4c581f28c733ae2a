"""Pods of RunPod on demand, through its REST API v2 (docs/pods.md): one for each run, terminated when the run ends.

POST   /pods          the pod; its name holds the run, the launch and the project's mark
GET    /pods          all of the account: one look serves all runs
DELETE /pods/<id>     terminates it; nothing of it is billed any more
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import Any

import httpx

from lora_worker.errors import (
    CreationInDoubtError,
    LaunchInDoubtError,
    LaunchRefusedError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
    SettingsError,
)
from lora_worker.launchers.addresses import split_endpoint
from lora_worker.launchers.base import (
    ContainerLine,
    EndpointHealth,
    Guide,
    LaunchRef,
    LaunchState,
    Observation,
    OwnedLaunch,
    Policy,
)
from lora_worker.launchers.machine_types import asked_gpu
from lora_worker.launchers.marks import is_launch_id, new_launch_id, run_of_name
from lora_worker.launchers.runpod.lines import FOLLOW_SECONDS, read_lines, read_tail, tail_of
from lora_worker.launchers.runpod_pods.answers import MAX_LAUNCH_SECONDS, own_pod, read_health, read_observation
from lora_worker.launchers.runpod_pods.api import PodsApi
from lora_worker.launchers.runpod_pods.gpus import PodShape, gpu_ids, shape_fault
from lora_worker.launchers.runpod_pods.plan import PodPlan
from lora_worker.launchers.runpod_pods.settings import RunPodPodsSettings
from lora_worker.launchers.runpod_pods.watch import PodWatch, shared_watch

TITLE = "RunPod's pods"

_GUIDE = Guide(
    title=TITLE,
    console="RunPod's console under Pods",
    check="check GPU_CLUSTER_API_KEY, which needs read and write access to Pods, and LORA_WORKER_RUNPOD_PODS_IMAGE",
    former_endpoint="set LORA_WORKER_RUNPOD_API_URL and GPU_CLUSTER_API_KEY to those of that account until its runs "
    "have ended; they are neither ended nor billed before",
    volume="A Pod with that volume shows it below /workspace.",
)
_ELSEWHERE = "it is at another API than LORA_WORKER_RUNPOD_API_URL, and the key is not sent there"
_CLOCK_DOUBT_SECONDS = 86_400.0
_MOST_SIDE_BY_SIDE = 16
_MOST_OWNED = 1000
_NEXT_CANDIDATE = frozenset({400, 403})
"""With these statuses another GPU may be had: “no capacity” is a 400 like any other there, told apart by its text."""
_NO_CAPACITY = re.compile(r"no (longer|available|free|instances?|machines?|gpus?)|capacity|does not have the resources",
                          re.IGNORECASE)  # fmt: skip


def most_connections(settings: RunPodPodsSettings) -> int:
    """How many calls may be under way at the same time."""
    return 2 * min(settings.launcher_concurrency, _MOST_SIDE_BY_SIDE)


class RunPodPodsLauncher:
    """The pods of one account. `endpoint` is the address of its pods; several with other GPUs are told apart by what
    stands behind a `#`: `https://api.runpod.io/v2/pods#H100x2`."""

    name = "runpod-pods"
    guide = _GUIDE
    longest_launch_seconds = MAX_LAUNCH_SECONDS + _CLOCK_DOUBT_SECONDS
    takes_errands = False

    def __init__(
        self,
        endpoint: str,
        key: str,
        plan: PodPlan,
        *,
        shape: PodShape,
        http: httpx.AsyncClient,
        is_shared: bool = False,
        **times: Any,
    ) -> None:
        """Make it. `is_shared`: it watches the account's pods together with the launchers of its other endpoints; else
        alone, with these `times` of `PodWatch`."""
        self.endpoint = endpoint
        self._base, _ = split_endpoint(endpoint)
        self._shape = shape
        # A look that fails is repeated by the next poll, and a launch by the run's next turn.
        self._api = PodsApi(self._base.removesuffix("/pods"), key, http=http, most_attempts=1)
        self._plan = plan
        self._watch = (
            shared_watch(self._api, self._base, key, plan.mark, http=http)
            if is_shared
            else PodWatch(self._api, plan.mark, **times)
        )

    @classmethod
    def open(
        cls, settings: RunPodPodsSettings, http: httpx.AsyncClient, endpoint: str | None = None
    ) -> RunPodPodsLauncher:
        """The launcher of these settings, or of another endpoint with them.

        Raises:
            SettingsError: the endpoint is at another API, or its pods can't have the GPUs that are billed.
        """
        own = f"{settings.runpod_api_url}/pods"
        endpoint = endpoint or own
        address, named = split_endpoint(endpoint)
        if address != own:
            raise SettingsError(f"the endpoint {address:.200} is at another API than {own}.")
        billed = PodShape(settings.endpoint_gpu_type, settings.endpoint_gpu_count)
        if fault := shape_fault(named, billed):
            raise SettingsError(f"the endpoint {endpoint:.200} {fault}.")
        key = settings.gpu_cluster_api_key.get_secret_value()
        return cls(endpoint, key, PodPlan.of(settings), shape=billed, http=http, is_shared=True)

    def reaches(self, endpoint: str) -> bool:
        """Whether the key may go to an endpoint. See `Launcher.reaches`."""
        return split_endpoint(endpoint)[0] == self._base

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """Start a run in a pod of its own. See `Launcher.launch`.

        A run that is live there gets no second pod: its launch is looked for first, and again where the answer to a
        pod's creation was lost.
        """
        gpu_type = self._shape.gpu_type or asked_gpu(payload)
        candidates = gpu_ids(gpu_type)
        if not candidates:
            raise LaunchRefusedError(TITLE, f"RunPod has no pods with the GPU {gpu_type!s:.60}", status=400)
        try:
            launch_id = new_launch_id(str(payload.get("run_id", "")))
            environment = self._plan.environment(
                launch_id, payload, policy, endpoint=self.endpoint, pods_url=self._base
            )
        except ValueError as error:
            raise LaunchRefusedError(TITLE, str(error), status=400) from None
        if (live := await self._live_launch(launch_id)) is not None:
            return live
        return await self._make(launch_id, environment, candidates)

    async def observe(self, launch: LaunchRef) -> Observation:
        """Look at a launch. See `Launcher.observe`."""
        if not self._is_here(launch):
            return Observation(LaunchState.UNKNOWN, reason=_ELSEWHERE)
        if not is_launch_id(launch.external_job_id):
            return Observation(LaunchState.MISSING, reason="no launch has such an id")
        try:
            own = await self._watch.find(launch.external_job_id)
        except ServiceError as error:
            return Observation(LaunchState.UNKNOWN, reason=str(error))
        if own is None:
            missing = Observation(LaunchState.MISSING, reason="RunPod has no pod of this launch")
            return self._watch.ended_as(launch.external_job_id) or missing
        if (end := self._watch.judge_end(own)) is not None:
            # The list has just asked for its end. While that is not confirmed, it may be billed.
            return Observation(LaunchState.UNKNOWN, reason=f"{end.reason}, and RunPod still has its pod")
        return read_observation(own, self._watch.now())

    async def cancel(self, launch: LaunchRef) -> bool:
        """Terminate a launch's pod. See `Launcher.cancel`."""
        if not self._is_here(launch):
            return False
        if not is_launch_id(launch.external_job_id):
            return True
        try:
            own = await self._watch.find_to_end(launch.external_job_id)
            if own is not None:
                seconds = own.billed_seconds(self._watch.now())
                await self._watch.end(own, Observation(LaunchState.CANCELLED, execution_seconds=seconds))
        except ServiceError:
            return False
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """Whether the account answers, and whether it can have pods with these GPUs. See `Launcher.health`."""
        if endpoint is not None and not self.reaches(endpoint):
            return EndpointHealth(False, 0, 0, _ELSEWHERE)
        candidates, problem = gpu_ids(self._shape.gpu_type), None
        try:
            pods = await self._watch.look()
            if candidates and not await self._has_stock(candidates):
                problem = f"RunPod has no free {self._shape.gpu_type} for a pod now"
        except ServiceError as error:
            return EndpointHealth(False, 0, 0, str(error))
        here = [own for own in pods.values() if own.is_at(self.endpoint, self._shape)]
        return read_health(here, self._watch.problem or problem)

    async def read_prices(self) -> dict[str, float]:
        """RunPod's prices of the GPUs that this endpoint's pods may have: USD of one and an hour, by RunPod's ids.

        Raises:
            ServiceError: they can't be read; the text says why.
        """
        found: dict[str, float] = {}
        for gpu_id in gpu_ids(self._shape.gpu_type):
            gpu = await self._api.read_stock(gpu_id, gpu_count=self._shape.gpu_count, cloud=self._plan.cloud)
            price = gpu and gpu.price and (gpu.price.secure if self._plan.cloud == "SECURE" else gpu.price.community)
            if price:
                found[gpu_id] = price
        return found

    @property
    def account(self) -> str:
        """The address of the account's pods, whatever GPUs they have. See `OwnerOfLaunches.account`."""
        return self._base

    async def owned(self) -> list[OwnedLaunch]:
        """The pods with this project's mark. See `OwnerOfLaunches.owned`."""
        pods = await self._watch.look(anew=True)
        now = self._watch.now()
        found = [OwnedLaunch(own.launch_id, own.run_id, own.age_seconds(now)) for own in pods.values()]
        return sorted(found, key=lambda owned: -(owned.age_seconds or 0.0))[:_MOST_OWNED]

    async def read(self, launch: LaunchRef, container: str | None, *, most_lines: int) -> list[ContainerLine]:
        """The last lines of a launch's pod. See `ContainerLogs.read`."""
        pod_id = await self._pod_of(launch, container)
        return [] if pod_id is None else await read_tail(pod_id, self._api.read_log(pod_id, **tail_of(most_lines)))

    async def follow(
        self, launch: LaunchRef, container: str, *, since: datetime | None
    ) -> AsyncIterator[ContainerLine]:
        """The lines of a launch's pod as they come. See `ContainerLogs.follow`."""
        pod_id = await self._pod_of(launch, container)
        if pod_id is not None:
            async for line in read_lines(pod_id, self._api.read_log(pod_id, since=since, idle_seconds=FOLLOW_SECONDS)):
                yield line

    def _is_here(self, launch: LaunchRef) -> bool:
        return launch.endpoint is None or self.reaches(launch.endpoint)

    async def _pod_of(self, launch: LaunchRef, container: str | None) -> str | None:
        """RunPod's id of a launch's pod; None where the container is another one."""
        if not self._is_here(launch) or not is_launch_id(launch.external_job_id):
            return None
        own = await self._watch.find(launch.external_job_id)
        return own.pod_id if own is not None and container in {None, own.pod_id} else None

    async def _make(self, launch_id: str, environment: dict[str, str], candidates: tuple[str, ...]) -> str:
        """Make the pod on the first type of GPU of which there is one."""
        refusals: list[ServiceRefusedError] = []
        for gpu_id in candidates:
            wanted = self._plan.pod(launch_id, environment, gpu_id, self._shape.gpu_count)
            try:
                made = await self._api.create_pod(wanted)
            except CreationInDoubtError as doubt:
                return await self._found_again(launch_id, doubt)
            except ServiceRefusedError as refusal:
                if refusal.status not in _NEXT_CANDIDATE:
                    raise
                refusals.append(refusal)
                continue
            self._watch.expire()
            if (own := own_pod(made, self._plan.mark)) is None or own.launch_id != launch_id:
                raise LaunchInDoubtError(TITLE, "RunPod's answer is of another pod than was asked for")
            self._watch.note(own)
            return launch_id
        raise await self._explain(refusals, candidates)

    async def _explain(self, refusals: list[ServiceRefusedError], candidates: tuple[str, ...]) -> ServiceError:
        """What it means that no candidate was taken: there is no such GPU now, or the request is wrong."""
        last = refusals[-1]
        is_out = any(_NO_CAPACITY.search(str(refusal)) for refusal in refusals)
        if not is_out:
            with suppress(ServiceError):
                is_out = not await self._has_stock(candidates)
        if is_out:
            text = f"RunPod has no pod with {self._shape.gpu_count} × {candidates[0]} or the like now"
            return ServiceUnavailableError(TITLE, text)
        return last

    async def _has_stock(self, candidates: tuple[str, ...]) -> bool:
        """Whether the catalog has one of these GPUs for pods. What it does not say counts as there."""
        for gpu_id in candidates:
            found = await self._api.read_stock(gpu_id, gpu_count=self._shape.gpu_count, cloud=self._plan.cloud)
            if found is not None and found.availability != "NONE":
                return True
        return False

    async def _live_launch(self, launch_id: str) -> str | None:
        """The launch by which the run of another launch has a pod already, from a creation whose answer nobody read.

        Raises:
            ServiceError: that can't be known now, and nothing was made.
            LaunchInDoubtError: it has one with other GPUs than this endpoint's, by which it would be billed.
        """
        for own in (await self._watch.look(anew=True)).values():
            if own.is_live and own.run_id == run_of_name(launch_id):
                if not own.is_on(self._shape):
                    raise LaunchInDoubtError(TITLE, "the run has a pod with other GPUs already")
                self._watch.note(own)
                return own.launch_id
        return None

    async def _found_again(self, launch_id: str, doubt: CreationInDoubtError) -> str:
        """The launch, if its pod is there in spite of the lost answer. Raises: LaunchInDoubtError: it is not seen."""
        self._watch.expire()
        with suppress(ServiceError):
            if launch_id in await self._watch.look(anew=True):
                return launch_id
        raise LaunchInDoubtError(TITLE, str(doubt)) from None
