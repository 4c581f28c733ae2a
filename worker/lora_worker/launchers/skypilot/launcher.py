"""Managed jobs of SkyPilot: any cloud or Kubernetes that its API server knows (docs/skypilot.md).

A managed job whose machine is taken away is started again by SkyPilot on another; the trainer checks in as a new
execution of the same launch and goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx

from lora_worker.configuration.addresses import server_fault
from lora_worker.configuration.extras import missing_packages
from lora_worker.errors import (
    LaunchInDoubtError,
    LaunchRefusedError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
    SettingsError,
)
from lora_worker.launchers.addresses import split_endpoint
from lora_worker.launchers.base import (
    EndpointHealth,
    Guide,
    LaunchRef,
    LaunchState,
    Observation,
    OwnedLaunch,
    Policy,
)
from lora_worker.launchers.marks import project_mark, run_of_name
from lora_worker.launchers.skypilot.client import INSTALL, Problem, SkyClient, SkyError
from lora_worker.launchers.skypilot.jobs import (
    MOST_LISTED,
    Job,
    Names,
    TaskShape,
    accelerator_fault,
    is_launch,
    live_of_run,
    now_seconds,
    of_launch,
    read_health,
    read_jobs,
    read_observation,
    secrets_of,
    task_of,
    ttl_seconds_of,
)
from lora_worker.launchers.skypilot.settings import SkyPilotSettings

SERVICE = "SkyPilot"
_MAX_JOB_SECONDS = 30 * 86_400.0
_LIST_SECONDS, _CANCEL_SECONDS = 60.0, 60.0
_LAUNCH_SECONDS = 180.0
"""A server without the consolidated controller may have to start a machine for it before it takes the first job."""

_GUIDE = Guide(
    title=SERVICE,
    console="`sky jobs queue` and `sky jobs logs`, or its dashboard",
    check="check LORA_WORKER_SKYPILOT_URL and LORA_WORKER_SKYPILOT_TOKEN, and that `sky check` there names a cloud",
    former_endpoint="name it in LORA_WORKER_FORMER_SKYPILOT_SERVERS; its runs are neither ended nor billed before",
    volume="It is the bucket or the volume that LORA_WORKER_SKYPILOT_VOLUME names.",
)
_ELSEWHERE = (
    "it is at another server than LORA_WORKER_SKYPILOT_URL, and the token is not sent there: name it in "
    "LORA_WORKER_FORMER_SKYPILOT_SERVERS while launches of its time live"
)
_SENTENCES = {
    Problem.MISSING: f"{SERVICE} can't be used by this worker; {INSTALL}",
    Problem.UNAUTHORIZED: f"{SERVICE}'s API server refused the token: check LORA_WORKER_SKYPILOT_TOKEN",
    Problem.UNREACHABLE: f"{SERVICE}'s API server is not reachable",
    Problem.REFUSED: f"{SERVICE} refuses the task: check LORA_WORKER_SKYPILOT_IMAGE, _INFRA, _ACCELERATOR and _VOLUME",
    Problem.CONTROLLER_STOPPED: f"{SERVICE}'s controller of managed jobs is stopped",
    Problem.IN_DOUBT: f"{SERVICE} did not answer as it should",
    Problem.FAILED: f"{SERVICE} could not do it",
}


def most_connections(_settings: SkyPilotSettings) -> int:
    """How many calls of the worker's own client may be under way at the same time: SkyPilot's process makes its own."""
    return 1


class SkyPilotLauncher:
    """An API server of SkyPilot. `endpoint` is its address, for several kinds of machines there with the GPU's name in
    SkyPilot's catalog behind a `#`: `https://sky.example.com#H100`."""

    name = "skypilot"
    guide = _GUIDE
    longest_launch_seconds = _MAX_JOB_SECONDS
    takes_errands = False

    def __init__(
        self,
        endpoint: str,
        shape: TaskShape,
        *,
        python: str = "",
        token: str = "",
        former: Iterable[str] = (),
        now: Callable[[], float] = now_seconds,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._base, self._accelerator = split_endpoint(self.endpoint)
        self._shape = replace(shape, accelerator=self._accelerator) if self._accelerator else shape
        self._names, self._now = Names(shape.mark), now
        # SkyPilot knows its callers by 8 hexadecimal digits, and would make up new ones for each process.
        servers = dict.fromkeys((self._base, *(each.rstrip("/") for each in former)))
        self._clients = {each: SkyClient.of(each, python=python, token=token, user=shape.mark[:8]) for each in servers}
        self._boards = {each: _Board(client, self._names.part) for each, client in self._clients.items()}

    @classmethod
    def open(
        cls, settings: SkyPilotSettings, _http: httpx.AsyncClient, endpoint: str | None = None
    ) -> SkyPilotLauncher:
        """The launcher of these settings, or of another API server with them.

        Raises:
            SettingsError: SkyPilot is not there, the endpoint is none, or it has another GPU than is billed.
        """
        base, accelerator = split_endpoint(endpoint or settings.skypilot_url)
        fault = server_fault(base, "SkyPilot's API server")
        if fault or not re.fullmatch(r"[A-Za-z0-9-]{0,60}", accelerator):
            raise SettingsError(f"the endpoint of {SERVICE} {fault or 'names no GPU behind its #'}.")
        if fault := accelerator_fault(accelerator or settings.skypilot_accelerator, settings.endpoint_gpu_type):
            where = "the endpoint" if accelerator else "LORA_WORKER_SKYPILOT_ACCELERATOR"
            raise SettingsError(
                f"{where} {fault}: set LORA_WORKER_ENDPOINT_GPU_TYPE (gpu_type in a routing table) to that GPU."
            )
        python = settings.skypilot_python
        if python and not os.access(python, os.X_OK):
            raise SettingsError(f"LORA_WORKER_SKYPILOT_PYTHON: {python} is no program that can be run.")
        if not python and missing_packages(["sky"]):
            raise SettingsError(f"LORA_WORKER_LAUNCHER: {SERVICE} is not installed; {INSTALL}.")
        return cls(
            endpoint or settings.skypilot_url,
            TaskShape.of(settings, project_mark(settings.supabase_url)),
            python=python,
            token=settings.skypilot_token.get_secret_value(),
            former=(settings.skypilot_url, *settings.former_skypilot_servers),
        )

    def reaches(self, endpoint: str) -> bool:
        """Whether the token may go to an endpoint. See `Launcher.reaches`."""
        return split_endpoint(endpoint)[0] in self._clients

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """Start a run as a managed job. See `Launcher.launch`.

        A run that is live there is not started twice: its job is looked for first, since an earlier submission may
        have been accepted without an answer.
        """
        run_id = str(payload.get("run_id", ""))
        try:
            name = self._names.new(run_id, policy, self._accelerator)
            task = task_of(self._shape, payload, policy, name)
            secrets = secrets_of(self._shape, payload)
        except ValueError as error:
            raise LaunchRefusedError(SERVICE, str(error), status=400) from None
        try:
            if (live := await self._live_launch(run_id)) is not None:
                return live
        except SkyError as error:
            raise _refusal(error) from None
        client = self._clients[self._base]
        try:
            await client.call("launch", seconds=_LAUNCH_SECONDS, name=name, task=task, secrets=secrets)
        except SkyError as error:
            if error.problem in {Problem.IN_DOUBT, Problem.FAILED}:
                raise LaunchInDoubtError(SERVICE, _text(error)) from None
            raise _refusal(error) from None
        return name

    async def observe(self, launch: LaunchRef) -> Observation:
        """Look at a launch. See `Launcher.observe`."""
        base, name = split_endpoint(launch.endpoint or self.endpoint)[0], launch.external_job_id
        if base not in self._clients:
            return Observation(LaunchState.UNKNOWN, reason=_ELSEWHERE)
        if not is_launch(name):
            return Observation(LaunchState.MISSING, reason="no launch has such an id")
        try:
            jobs = await self._jobs_of(base, name)
        except SkyError as error:
            return Observation(LaunchState.UNKNOWN, reason=_text(error))
        if not jobs:
            return Observation(LaunchState.MISSING, reason=f"{SERVICE} has no job of this launch")
        ttl_seconds = ttl_seconds_of(name)
        if jobs[0].is_live and jobs[0].is_overdue(ttl_seconds, self._now()):
            # It would look for a machine for ever; the next look sees it cancelled, as one that never started.
            with suppress(SkyError):
                await self._cancel(base, jobs)
        return read_observation(jobs[0], ttl_seconds)

    async def cancel(self, launch: LaunchRef) -> bool:
        """Ask for the end of a launch. See `Launcher.cancel`."""
        base, name = split_endpoint(launch.endpoint or self.endpoint)[0], launch.external_job_id
        if base not in self._clients:
            return False
        if not is_launch(name):
            return True
        try:
            await self._cancel(base, await self._jobs_of(base, name))
        except SkyError:
            return False
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """Look at a server, and at what the endpoint's jobs say of it. See `Launcher.health`."""
        base, accelerator = split_endpoint(endpoint or self.endpoint)
        if base not in self._boards:
            return EndpointHealth(False, 0, 0, _ELSEWHERE)
        try:
            jobs = await self._read(base)
        except SkyError as error:
            return EndpointHealth(False, 0, 0, _text(error))
        return read_health([job for job in jobs if self._names.is_at(job.job_name, accelerator)], self._now())

    @property
    def account(self) -> str:
        """The API server, whatever machines its jobs have. See `OwnerOfLaunches.account`."""
        return self._base

    async def owned(self) -> list[OwnedLaunch]:
        """What lives at the server with this project's mark. See `OwnerOfLaunches.owned`."""
        try:
            jobs = await self._read(self._base)
        except SkyError as error:
            raise _refusal(error) from None
        now, found = self._now(), []
        for job in sorted(jobs, key=lambda job: job.job_id):
            run_id = run_of_name(job.job_name)
            if job.is_live and run_id is not None and self._names.is_ours(job.job_name):
                age = max(now - job.submitted_at, 0.0) if job.submitted_at is not None else None
                found.append(OwnedLaunch(job.job_name, run_id, age))
        return found

    async def _live_launch(self, run_id: str) -> str | None:
        """The launch of a run that waits or works there; None without one.

        Raises:
            LaunchInDoubtError: it is one of another endpoint, on another machine than is billed here.
            SkyError: that can't be known.
        """
        live = live_of_run(await self._read(self._base), run_id, self._names)
        broken = [job for job in live if job.was_never_queued]
        if broken:
            await self._cancel(self._base, broken)
        name = next((job.job_name for job in live if not job.was_never_queued), None)
        if name is not None and not self._names.is_at(name, self._accelerator):
            raise LaunchInDoubtError(SERVICE, "the run has a live job there that was made for another GPU")
        return name

    async def _read(self, base: str) -> list[Job]:
        """The project's latest jobs at a server. Raises: SkyError: they can't be known."""
        return await _unless_stopped(self._boards[base].read())

    async def _jobs_of(self, base: str, name: str) -> list[Job]:
        """The jobs of a launch. Raises: SkyError: they can't be known."""
        jobs = await self._read(base)
        found = of_launch(jobs, name)
        # The name of a row has another mark than the list where the database's address has been spelled anew since.
        if found or (len(jobs) < MOST_LISTED and self._names.is_ours(name)):
            return found
        return of_launch(await _unless_stopped(_list(self._clients[base], name, 10)), name)

    async def _cancel(self, base: str, jobs: list[Job]) -> None:
        live = [job.job_id for job in jobs if job.is_live]
        if live:
            await self._clients[base].call("cancel", seconds=_CANCEL_SECONDS, job_ids=live)


class _Board:
    """The project's jobs at a server, read once for all who ask at the same time.

    A list takes the server two to six seconds, and a worker looks at all its launches at once. Whoever asks gets a list
    that was begun after that: in an older one a launch that has just been made would be missing.
    """

    def __init__(self, client: SkyClient, part: str) -> None:
        self._client, self._part = client, part
        self._current: asyncio.Task[list[Job]] | None = None
        self._next: asyncio.Task[list[Job]] | None = None

    async def read(self) -> list[Job]:
        """The latest jobs, newest first; `MOST_LISTED` at most. Raises: SkyError: they can't be read."""
        if self._next is None or self._next.get_loop() is not asyncio.get_running_loop():
            self._next = asyncio.create_task(self._read_after(self._current))
        # Shielded: one who stops waiting must not end what the others wait for.
        return await asyncio.shield(self._next)

    async def _read_after(self, former: asyncio.Task[list[Job]] | None) -> list[Job]:
        if former is not None and former.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([former])
        self._current, self._next = self._next, None
        return await _list(self._client, self._part, MOST_LISTED)


async def _unless_stopped(reading: Awaitable[list[Job]]) -> list[Job]:
    """What is read; nothing where the controller is stopped. Raises: SkyError: it can't be read."""
    try:
        return await reading
    except SkyError as error:
        if error.problem is not Problem.CONTROLLER_STOPPED:
            raise
        # It stops only when no job lives, and is started again for the next one.
        return []


async def _list(client: SkyClient, part: str, most: int) -> list[Job]:
    """The latest jobs whose name has this part. Raises: SkyError: they can't be read."""
    value = await client.call("list", seconds=_LIST_SECONDS, name_match=part, limit=most)
    try:
        # Pipelines of several tasks have a line each, and a server of another version may not know the filter.
        return [job for job in read_jobs(value) if part in job.job_name]
    except ValueError as error:
        raise SkyError(Problem.FAILED, str(error)) from None


def _text(error: SkyError) -> str:
    return f"{_SENTENCES[error.problem]} ({error.text})"


def _refusal(error: SkyError) -> ServiceError:
    """The worker's exception for a call that changed nothing."""
    if error.problem in {Problem.MISSING, Problem.REFUSED}:
        return ServiceRefusedError(SERVICE, _text(error), status=424)
    if error.problem is Problem.UNAUTHORIZED:
        return ServiceRefusedError(SERVICE, _text(error), status=401)
    return ServiceUnavailableError(SERVICE, _text(error))
