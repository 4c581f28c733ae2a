"""Custom jobs of Google's Vertex AI, through its documented REST API (docs/vertex.md).

Google's own client for it would add 87 MB to a daemon of 55, and reads answers of any size; its messages are what the
tests hold this module's requests and answers against.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from lora_worker.configuration.extras import require_extra
from lora_worker.errors import (
    CreationInDoubtError,
    LaunchInDoubtError,
    LaunchRefusedError,
    ServiceError,
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
from lora_worker.launchers.marks import is_launch_id, new_launch_id, project_mark, run_of_name
from lora_worker.launchers.vertex.addresses import Locations, project_of
from lora_worker.launchers.vertex.answers import Job, read_health, read_observation
from lora_worker.launchers.vertex.api import SERVICE, VertexApi
from lora_worker.launchers.vertex.api import most_connections as connections
from lora_worker.launchers.vertex.jobs import (
    JobShape,
    custom_job,
    of_failed,
    of_launch,
    of_live,
    of_run,
)
from lora_worker.launchers.vertex.logs import JobLogs
from lora_worker.launchers.vertex.machines import MACHINES, Machine
from lora_worker.launchers.vertex.settings import MAX_JOB_SECONDS, VertexSettings
from lora_worker.launchers.vertex.tokens import GoogleTokens

_GUIDE = Guide(
    title=SERVICE,
    console="Google Cloud's console (Vertex AI, Training, Custom jobs)",
    check="check LORA_WORKER_VERTEX_PROJECT, LORA_WORKER_VERTEX_REGION and the worker's credentials of Google Cloud",
    former_endpoint="name it in LORA_WORKER_VERTEX_FORMER_ENDPOINTS and give the worker's identity access to it; its "
    "runs are neither ended nor billed before",
    volume="It is the folder lora-trainer of the bucket that LORA_WORKER_VERTEX_BUCKET names.",
)
_ELSEWHERE = (
    "it is of another project than LORA_WORKER_VERTEX_PROJECT, and the access token is not sent there: name it in "
    "LORA_WORKER_VERTEX_FORMER_ENDPOINTS while launches of its time live"
)
_MOST_QUEUE_SECONDS = 7 * 86_400.0
_CLOCK_DOUBT_SECONDS = 86_400.0
_MOST_KNOWN = 2000
_MOST_OWNED = 1000
_MOST_FAILED = 100
_RECENT = timedelta(days=1)


def most_connections(settings: VertexSettings) -> int:
    """How many calls may be under way at the same time."""
    return connections(settings.launcher_concurrency)


class VertexLauncher:
    """A project's region at Vertex AI. `endpoint` is its address, with the machine type of its jobs behind a `#`
    where that is not chosen by the GPU of the settings or of the job."""

    name = "vertex"
    guide = _GUIDE
    longest_launch_seconds = MAX_JOB_SECONDS + _MOST_QUEUE_SECONDS + _CLOCK_DOUBT_SECONDS
    takes_errands = False

    def __init__(
        self,
        endpoint: str,
        api: VertexApi,
        shape: JobShape,
        logs: JobLogs,
        *,
        machine: Machine | None = None,
        gpu_count: int = 1,
        former: Iterable[str] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.endpoint = endpoint
        self._base, _ = split_endpoint(endpoint)
        self._machine, self._gpu_count = machine, gpu_count
        self._locations = Locations(self._base, former)
        self._api, self._shape, self._logs, self._now = api, shape, logs, now
        self._urls: OrderedDict[str, str] = OrderedDict()
        """Where launches are looked at. Without it they are looked for, and a list may lack what is seconds old."""

    @classmethod
    def open(cls, settings: VertexSettings, http: httpx.AsyncClient, endpoint: str | None = None) -> VertexLauncher:
        """The launcher of these settings, or of another endpoint with them.

        Raises:
            SettingsError: google-auth is not installed, or the endpoint is none of the settings' project.
            MachineUnknownError: there is no machine with its GPUs.
        """
        require_extra(SERVICE, "google-auth", "google.auth", "vertex")
        own = settings.vertex_endpoint
        machine_type = f"#{settings.vertex_machine_type}" if settings.vertex_machine_type else ""
        endpoint = endpoint or own + machine_type
        address, named = split_endpoint(endpoint)
        if Locations(own, settings.vertex_former_endpoints).of(address) is None:
            raise SettingsError(f"the endpoint {address} is none of {settings.vertex_project}'s at {SERVICE}.")
        machine = MACHINES.of_endpoint(named, settings.endpoint_gpu_type, settings.endpoint_gpu_count)
        tokens = GoogleTokens()
        return cls(
            endpoint,
            VertexApi(http, tokens, concurrency=settings.launcher_concurrency),
            JobShape.of(settings, project_mark(settings.supabase_url)),
            JobLogs(http, tokens),
            machine=machine,
            gpu_count=settings.endpoint_gpu_count,
            former=(own, *settings.vertex_former_endpoints),
        )

    def reaches(self, endpoint: str) -> bool:
        """Whether the access token may go to an endpoint. See `Launcher.reaches`."""
        return self._locations.of(endpoint) is not None

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """Start a run as a custom job. See `Launcher.launch`.

        A run that is live there is not started twice: its launch is looked for first, and again where the answer to
        a job's creation was lost.
        """
        run_id = str(payload.get("run_id", ""))
        try:
            launch_id = new_launch_id(run_id)
            machine = self._machine_of(payload)
            job = custom_job(self._shape, machine, launch_id, payload, policy)
        except ValueError as error:
            raise LaunchRefusedError(SERVICE, str(error), status=400) from None
        if (live := await self._live_launch(run_id, machine.name)) is not None:
            return live
        try:
            made = await self._api.create(self._base, job)
        except CreationInDoubtError as error:
            return await self._found_again(launch_id, error)
        if not made.bears(self._shape.mark, launch_id) or made.number is None:
            raise LaunchInDoubtError(SERVICE, f"{SERVICE}'s answer is of another job than was asked for")
        self._remember(launch_id, made)
        return launch_id

    async def observe(self, launch: LaunchRef) -> Observation:
        """Look at a launch. See `Launcher.observe`."""
        base = self._locations.of(launch.endpoint)
        if base is None:
            return Observation(LaunchState.UNKNOWN, reason=_ELSEWHERE)
        if not is_launch_id(launch.external_job_id):
            return Observation(LaunchState.MISSING, reason="no launch has such an id")
        try:
            job = await self._find(base, launch.external_job_id)
        except ServiceError as error:
            return Observation(LaunchState.UNKNOWN, reason=str(error))
        if job is None:
            return Observation(LaunchState.MISSING, reason=f"{SERVICE} has no job of this launch")
        now = self._now()
        if job.is_overdue(now) and job.number is not None:
            # Without quota a job waits for ever there; the next look sees it cancelled, as one that never started.
            with suppress(ServiceError):
                await self._api.cancel(_url(base, job.number))
        return read_observation(job, now)

    async def cancel(self, launch: LaunchRef) -> bool:
        """Ask for the end of a launch. See `Launcher.cancel`."""
        base = self._locations.of(launch.endpoint)
        if base is None:
            return False
        if not is_launch_id(launch.external_job_id):
            return True
        try:
            job = await self._find(base, launch.external_job_id)
            if job is None or job.is_ended:
                return True
            if job.number is None:
                return False
            await self._api.cancel(_url(base, job.number))
        except ServiceError:
            return await self._has_ended(base, launch.external_job_id)
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """Look at a region, and at what its latest jobs on the endpoint's machines say. See `Launcher.health`."""
        base = self._locations.of(endpoint)
        if base is None:
            return EndpointHealth(False, 0, 0, _ELSEWHERE)
        mark, now = self._shape.mark, self._now()
        try:
            live = await self._api.list(base, of_live(mark))
            failed = await self._api.list(base, of_failed(mark, now - _RECENT), most=_MOST_FAILED)
        except ServiceError as error:
            return EndpointHealth(False, 0, 0, str(error))
        machine_type = self._machine_type_at(endpoint or self.endpoint)
        there = [[job for job in jobs if job.is_on(machine_type)] for jobs in (live, failed)]
        return read_health(there[0], there[1], now)

    @property
    def account(self) -> str:
        """The project's region, whatever machines its jobs have. See `OwnerOfLaunches.account`."""
        return self._base

    async def owned(self) -> list[OwnedLaunch]:
        """What lives in the region with this project's mark. See `OwnerOfLaunches.owned`."""
        now = self._now()
        jobs = await self._api.list(self._base, of_live(self._shape.mark), most=_MOST_OWNED)
        found = []
        for job in sorted(jobs, key=lambda job: job.create_time or now):
            run_id = run_of_name(job.launch_id or "")
            if job.launch_id is not None and run_id is not None and job.bears(self._shape.mark, job.launch_id):
                age = (now - job.create_time).total_seconds() if job.create_time else None
                found.append(OwnedLaunch(job.launch_id, run_id, age))
        return found

    async def read(self, launch: LaunchRef, container: str | None, *, most_lines: int) -> list[ContainerLine]:
        """The last lines of a launch's job, also of one that waits. See `ContainerLogs.read`."""
        found = await self._place_of(launch, container)
        return await self._logs.read(*found, most_lines=most_lines) if found else []

    async def follow(
        self, launch: LaunchRef, container: str, *, since: datetime | None
    ) -> AsyncIterator[ContainerLine]:
        """The lines of a launch's job as they come. See `ContainerLogs.follow`."""
        found = await self._place_of(launch, container)
        if found is not None:
            async for line in self._logs.follow(*found, since=since):
                yield line

    async def _place_of(self, launch: LaunchRef, container: str | None) -> tuple[str, str] | None:
        """Project and number of a launch's job, for its log; None where this project has no such job.

        Raises:
            ServiceError: that can't be known now.
        """
        base = self._locations.of(launch.endpoint)
        if base is None or not is_launch_id(launch.external_job_id):
            return None
        job = await self._find(base, launch.external_job_id)
        if job is None or job.number is None or container not in {None, job.number}:
            return None
        return project_of(base), job.number

    def _machine_type_at(self, endpoint: str) -> str:
        """The type of an endpoint's machines; "" where it may have several. Other endpoints share the region."""
        _, named = split_endpoint(endpoint)
        if named or endpoint != self.endpoint or self._machine is None:
            return named
        return self._machine.name

    def _machine_of(self, payload: dict[str, Any]) -> Machine:
        """The machine of a run: the endpoint's, else one with the GPU that was asked for, in the endpoint's number.

        Raises:
            MachineUnknownError: there is none; the text is a sentence.
        """
        if self._machine is not None:
            return self._machine
        return MACHINES.with_gpus(str(asked_gpu(payload)), self._gpu_count)

    async def _live_launch(self, run_id: str, machine_type: str) -> str | None:
        """The launch of a run that waits or works there, from a creation whose answer nobody read; None without one.

        Raises:
            LaunchInDoubtError: it is one of another endpoint, on another machine than is billed here.
            ServiceError: that can't be known now, and nothing was made.
        """
        for job in await self._api.list(self._base, of_run(self._shape.mark, run_id)):
            if job.is_live and job.launch_id is not None and job.bears(self._shape.mark, job.launch_id):
                if not job.is_on(machine_type):
                    raise LaunchInDoubtError(SERVICE, "the run has a live job there on another type of machine")
                self._remember(job.launch_id, job)
                return job.launch_id
        return None

    async def _found_again(self, launch_id: str, doubt: CreationInDoubtError) -> str:
        """The launch, if the region has it in spite of the lost answer. Raises: LaunchInDoubtError: it is not seen."""
        with suppress(ServiceError):
            if await self._find(self._base, launch_id) is not None:
                return launch_id
        raise LaunchInDoubtError(SERVICE, str(doubt)) from None

    async def _find(self, base: str, launch_id: str) -> Job | None:
        """The job of a launch, by its id alone: the mark is another one where the database's address is spelled anew.
        None where there is none.

        Raises:
            ServiceError: it could not be looked at; the text says why.
        """
        known = self._urls.get(launch_id)
        if known is not None and known.startswith(f"{base}/"):
            job = await self._api.get(known)
            if job is not None and job.launch_id == launch_id:
                return job
        for job in await self._api.list(base, of_launch(launch_id), most=1):
            if job.launch_id == launch_id:
                self._remember(launch_id, job, base)
                return job
        return None

    async def _has_ended(self, base: str, launch_id: str) -> bool:
        """Whether a launch is over, after its cancel was refused: one that has ended meanwhile is."""
        try:
            job = await self._find(base, launch_id)
        except ServiceError:
            return False
        return job is None or job.is_ended

    def _remember(self, launch_id: str, job: Job, base: str | None = None) -> None:
        if job.number is None:
            return
        self._urls[launch_id] = _url(base or self._base, job.number)
        if len(self._urls) > _MOST_KNOWN:
            self._urls.popitem(last=False)


def _url(base: str, number: str) -> str:
    return f"{base}/customJobs/{number}"
