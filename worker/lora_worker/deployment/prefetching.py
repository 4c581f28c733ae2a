"""Fills the volumes of an endpoint with base models, by a job on the endpoint itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lora_contract.errands import ErrandResult, PrefetchProgress, PrefetchRequest
from lora_worker.errors import DeploymentError, LaunchInDoubtError
from lora_worker.launchers.base import Launcher, LaunchRef, LaunchState, Observation, Policy

POLL_SECONDS = 2.0
_HEALTH_SECONDS = 30.0
"""How often to ask why a job still waits."""
_PATIENCE_SECONDS = 300.0
"""How long the job's status may be unreadable before the waiting ends."""
_QUEUE_SECONDS = 3600.0
"""How long a prefetch may wait for a GPU: somebody sits before it."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at a prefetch: how long it has taken, how far it is, and what keeps it waiting, if RunPod says so."""

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

    Where the waiting is broken off (Ctrl-C), the job is cancelled, so that nothing is billed unseen. Files that were
    finished stay on the volume: the same call again goes on with the rest.

    Args:
        endpoint: where the job runs.
        models: names on the hub, as `organisation/model` or `organisation/model@revision`.
        execution_seconds: the longest time of the job.
        seen: called with each look at the job.
        clock: returns seconds.
        sleep: waits for some seconds.

    Raises:
        DeploymentError: the job was lost, or ended without an answer that can be read.
        ServiceError: the endpoint did not take the job.
    """
    request = PrefetchRequest(models=list(models)).model_dump(mode="json")
    policy = Policy(execution_seconds, _QUEUE_SECONDS + execution_seconds)
    try:
        job = LaunchRef(endpoint.endpoint, await endpoint.launch(request, policy))
    except LaunchInDoubtError as error:
        raise DeploymentError(
            f"{error}: it may run all the same. The same command again does no harm: what is there is not downloaded "
            "twice"
        ) from None
    try:
        return await _Watch(endpoint, job, seen, clock, sleep).until_ended()
    except (asyncio.CancelledError, KeyboardInterrupt):
        await endpoint.cancel(job)
        raise


@dataclass
class _Watch:
    endpoint: Launcher
    job: LaunchRef
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
                return _result_of(observation)
            if observation.state in {LaunchState.QUEUED, LaunchState.RUNNING}:
                answered = now
            elif observation.state is LaunchState.MISSING or now - answered > _PATIENCE_SECONDS:
                raise DeploymentError(
                    f"RunPod tells no more of the prefetch ({observation.reason or observation.state}): the same "
                    "command again goes on with what is missing"
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


def _result_of(observation: Observation) -> ErrandResult:
    """Read how a prefetch ended. A handler that knows no prefetch answers something else.

    Raises:
        DeploymentError: there is no answer that can be read.
    """
    try:
        result = ErrandResult.model_validate(observation.output)
        if result.kind == "prefetch" and (result.models or result.error):
            return result
    except ValidationError:
        pass
    if observation.state is LaunchState.CANCELLED:
        raise DeploymentError("the prefetch was cancelled; the same command again goes on with what is missing")
    if observation.state is LaunchState.COMPLETED:
        raise DeploymentError(
            "the endpoint's answer is none to a prefetch: does its image hold this release of the trainer?"
        )
    raise DeploymentError(
        f"the prefetch ended without an answer ({observation.cause}): the container's log in RunPod's console says "
        "why; an earlier release of the trainer knows no prefetch"
    )
