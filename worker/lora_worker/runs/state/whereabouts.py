"""Where the launches of a run are: each is looked at and stopped at the endpoint where it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lora_worker.launchers.base import LaunchRef, LaunchState, Observation
from lora_worker.launchers.places import Places


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """The endpoints at which a run was launched, the latest first, and where each launch was found.

    A trainer that checked in by itself does not say at which endpoint its launch was made. So a launch that is not
    where it is expected is looked for at the run's other endpoints.
    """

    places: Places
    endpoints: tuple[str | None, ...] = ()
    found: Mapping[str, str | None] = field(default_factory=dict)
    """The endpoint at which a launch was found, by the launcher's id of the launch."""

    @classmethod
    def of(cls, places: Places, endpoints: Iterable[str | None]) -> Whereabouts:
        """The whereabouts of a run that was launched at these endpoints."""
        return cls(places, tuple(dict.fromkeys(endpoints)))

    def adding(self, endpoint: str | None) -> Whereabouts:
        """The whereabouts with one more endpoint, at which the run was launched last."""
        return self if endpoint in self.endpoints else replace(self, endpoints=(endpoint, *self.endpoints))

    def ref(self, external_job_id: str, noted: str | None = None) -> LaunchRef:
        """The launch where it was found; else at the endpoint that was noted with it; else at the latest one."""
        latest = self.endpoints[0] if self.endpoints else None
        return LaunchRef(self.found.get(external_job_id, noted or latest), external_job_id)

    async def observe(
        self, external_job_id: str, noted: str | None = None, *, age_seconds: float | None = None
    ) -> tuple[Observation, Whereabouts]:
        """Look at a launch at each endpoint where it may be; also gives the whereabouts that know where it was found.

        A launch that is older than any can get counts as missing where it can't be looked at.
        """
        first = self.ref(external_job_id, noted)
        observation, found = await self.places.observe(first), self
        others = [endpoint for endpoint in self.endpoints if endpoint != first.endpoint]
        for endpoint in others if observation.state is LaunchState.MISSING else ():
            seen = await self.places.observe(LaunchRef(endpoint, external_job_id))
            if seen.state is LaunchState.UNKNOWN:
                observation = seen
            elif seen.state is not LaunchState.MISSING:
                found = replace(self, found={**self.found, external_job_id: endpoint})
                observation = seen
                break
        longest_seconds = max(map(self.places.longest_launch_seconds, {first.endpoint, *others}))
        if observation.state is LaunchState.UNKNOWN and age_seconds and age_seconds > longest_seconds:
            observation = replace(observation, state=LaunchState.MISSING)
        return observation, found

    def unseen(self, external_job_id: str, noted: str | None, observation: Observation) -> str | None:
        """Why nobody knows what a launch does, for the operator; None where that is known, or the launch is gone."""
        if observation.state is not LaunchState.UNKNOWN:
            return None
        endpoint = self.ref(external_job_id, noted).endpoint
        if self.places.at(endpoint) is not None:
            return f"its launch can't be looked at: {observation.reason}"
        return (
            f"its launch was made at {endpoint}, not at an endpoint of today's settings, and can't be looked at "
            f"there: {observation.reason}"
        )

    async def cancel(self, external_job_id: str, noted: str | None = None) -> bool:
        """Ask the launcher to end a launch, at the endpoint where it is."""
        return await self.places.cancel(self.ref(external_job_id, noted))
