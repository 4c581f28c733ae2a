"""Where the launches of a run are: each is looked at and stopped at the endpoint where it was made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lora_worker.launchers.base import Launcher, LaunchRef, LaunchState, Observation

LONGEST_LAUNCH_SECONDS = 8 * 86400.0
"""RunPod deletes a job seven days after its submission at the latest; one day for clocks and doubt."""


class Whereabouts:
    """The endpoints at which a run was launched, and what was found where.

    Which of them a trainer belongs to that has checked in by itself nobody says; so a launch that is not where
    it should be is looked for at the others.
    """

    def __init__(self, launcher: Launcher, endpoints: Iterable[str | None] = ()) -> None:
        self._launcher = launcher
        self._endpoints = list(dict.fromkeys(endpoints))
        self._found: dict[str, str | None] = {}

    def add(self, endpoint: str | None) -> None:
        """Note one more endpoint at which the run was launched."""
        if endpoint not in self._endpoints:
            self._endpoints.insert(0, endpoint)

    def ref(self, external_job_id: str, noted: str | None = None) -> LaunchRef:
        """The launch where it was found; else at the endpoint that was noted with it; else at the latest one."""
        latest = self._endpoints[0] if self._endpoints else None
        return LaunchRef(self._found.get(external_job_id, noted or latest), external_job_id)

    async def observe(
        self, external_job_id: str, noted: str | None = None, *, age_seconds: float | None = None
    ) -> Observation:
        """Look at a launch, at each endpoint where it may be. Past the longest life of a launch, none lives unseen."""
        first = self.ref(external_job_id, noted)
        observation = await self._launcher.observe(first)
        others = [place for place in self._endpoints if place != first.endpoint]
        for place in others if observation.state is LaunchState.MISSING else ():
            seen = await self._launcher.observe(LaunchRef(place, external_job_id))
            if seen.state is LaunchState.UNKNOWN:
                observation = seen
            elif seen.state is not LaunchState.MISSING:
                self._found[external_job_id] = place
                observation = seen
                break
        if observation.state is LaunchState.UNKNOWN and age_seconds and age_seconds > LONGEST_LAUNCH_SECONDS:
            return replace(observation, state=LaunchState.MISSING)
        return observation

    def unseen(self, external_job_id: str, noted: str | None, observation: Observation) -> str | None:
        """Why nobody knows what a launch does, for the operator; None where that is known, or forgotten."""
        if observation.state is not LaunchState.UNKNOWN:
            return None
        endpoint = self.ref(external_job_id, noted).endpoint
        if endpoint in {None, self._launcher.endpoint}:
            return f"its launch can't be looked at: {observation.reason}"
        return (
            f"its launch was made at {endpoint}, not at the endpoint of today's settings, and can't be looked at "
            f"there: {observation.reason}"
        )

    async def cancel(self, external_job_id: str, noted: str | None = None) -> bool:
        """Ask for the end of a launch where it is."""
        return await self._launcher.cancel(self.ref(external_job_id, noted))


def left_alone(made_by: str | None, launcher: Launcher) -> str | None:
    """Why a launch is left alone, for the operator: another launcher made it. None where this one may have."""
    if made_by in {None, launcher.name}:
        return None
    return f"it was launched by {made_by}, and this worker launches by {launcher.name}: start a worker that knows it"
