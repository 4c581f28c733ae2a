"""Has the endpoint carry out an errand that somebody waits for: filling its volume with base models, or an export."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lora_contract.errands import ErrandKind, ErrandResult, ExportRequest, PrefetchProgress, PrefetchRequest
from lora_worker.errors import DeploymentError, LaunchInDoubtError
from lora_worker.launchers.base import Guide, Launcher, LaunchRef, LaunchState, Observation, Policy

POLL_SECONDS = 2.0
_HEALTH_SECONDS = 30.0
"""How often to ask why a job still waits."""
_PATIENCE_SECONDS = 300.0
"""How long the job's status may be unreadable before the waiting ends."""
QUEUE_SECONDS = 3600.0
"""How long an errand may wait for a GPU: somebody sits before it."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at an errand: how long it has taken, how far it is, and what keeps it waiting, if that is known."""

    state: LaunchState
    seconds: float
    progress: PrefetchProgress | None = None
    problem: str | None = None


async def prefetch(
    endpoint: Launcher,
    models: Sequence[str],
    *,
    execution_seconds: float,
    seen: Callable[[Sight], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> ErrandResult:
    """Have the endpoint download base models to its volume, and return what became of each.

    Args:
        endpoint: where the job runs.
        models: names on the hub, as `organisation/model` or `organisation/model@revision`.
        execution_seconds: the longest time of the job.
        seen: called with each look at the job.
        clock: returns seconds.
        sleep: waits for some seconds.

    Raises: as `run_errand`.
    """
    request = PrefetchRequest(models=list(models))
    return await run_errand(endpoint, request, execution_seconds=execution_seconds, seen=seen, clock=clock, sleep=sleep)


async def run_errand(
    endpoint: Launcher,
    request: PrefetchRequest | ExportRequest,
    *,
    execution_seconds: float,
    seen: Callable[[Sight], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> ErrandResult:
    """Have the endpoint carry out a request, and return what came of it; arguments as of `prefetch`.

    Where the waiting is broken off (Ctrl-C), the job is cancelled, so that nothing is billed unseen. Files that were
    finished stay on the volume: the same call again goes on with the rest.

    Raises:
        DeploymentError: the job was lost, or ended without an answer that can be read.
        ServiceError: the endpoint did not take the job.
    """
    policy = Policy(execution_seconds, QUEUE_SECONDS + execution_seconds)
    try:
        job = LaunchRef(endpoint.endpoint, await endpoint.launch(request.model_dump(mode="json"), policy))
    except LaunchInDoubtError as error:
        raise DeploymentError(
            f"{error}: it may run all the same. The same command again does no harm: what is there is not made twice"
        ) from None
    try:
        return await _Watch(endpoint, job, request.kind, seen, clock, sleep).until_ended()
    except (asyncio.CancelledError, KeyboardInterrupt):
        await endpoint.cancel(job)
        raise


@dataclass
class _Watch:
    endpoint: Launcher
    job: LaunchRef
    kind: ErrandKind
    seen: Callable[[Sight], None]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[Any]]

    async def until_ended(self) -> ErrandResult:
        began = answered = self.clock()
        health_at, problem = began + _HEALTH_SECONDS, None
        while True:
            observation = await self.endpoint.observe(self.job)
            now = self.clock()
            if observation.ended:
                return _result_of(observation, self.kind, self.endpoint.guide)
            if observation.state in {LaunchState.QUEUED, LaunchState.RUNNING}:
                answered = now
            elif observation.state is LaunchState.MISSING or now - answered > _PATIENCE_SECONDS:
                raise DeploymentError(
                    f"{self.endpoint.guide.title} tells no more of the {self.kind} "
                    f"({observation.reason or observation.state}): the same command again goes on with what is missing"
                )
            if observation.state is LaunchState.QUEUED and now >= health_at:
                problem, health_at = (await self.endpoint.health()).problem, now + _HEALTH_SECONDS
            running = observation.state is LaunchState.RUNNING
            self.seen(
                Sight(
                    observation.state,
                    now - began,
                    _progress_of(observation.output) if running else None,
                    None if running else problem,
                )
            )
            await self.sleep(POLL_SECONDS)


def _progress_of(output: Any) -> PrefetchProgress | None:
    try:
        return PrefetchProgress.model_validate(output)
    except ValidationError:
        return None


def _result_of(observation: Observation, kind: ErrandKind, guide: Guide) -> ErrandResult:
    """Read how an errand ended. A handler that knows none of this kind answers something else.

    Raises:
        DeploymentError: there is no answer that can be read.
    """
    try:
        result = ErrandResult.model_validate(observation.output)
        if result.kind == kind and (result.models or result.export or result.error):
            return result
    except ValidationError:
        pass
    if observation.state is LaunchState.CANCELLED:
        raise DeploymentError(f"the {kind} was cancelled; the same command again goes on with what is missing")
    if observation.state is LaunchState.COMPLETED:
        raise DeploymentError(
            f"the endpoint's answer is none to this errand ({kind}): does its image hold this release of the trainer?"
        )
    raise DeploymentError(
        f"the {kind} ended without an answer ({observation.cause}): the container's log says why (see "
        f"{guide.console}); an earlier release of the trainer knows no such errand"
    )
