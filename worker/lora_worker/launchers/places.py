"""The places where runs can be launched: each is one endpoint of one launcher, with the GPUs that it has.

A row notes with each launch the launcher and the endpoint. An endpoint is a URI that no two launchers share, so it
leads back to the launcher that made it, whatever the settings say today.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lora_worker.launchers.base import EndpointHealth, Guide, Launcher, LaunchRef, LaunchState, Observation

DEFAULT_PLACE = "default"
"""The name of the only place where there is no routing table."""
_NEWER_GPU = re.compile(r"b[23]00|rtxpro|rtx50[5-9]0")
"""NVIDIA's Blackwell, from sm_100 on, in small letters and digits. The Dockerfile's image has kernels up to sm_90.

The RTX 5000 Ada and the Quadro RTX 5000 are older ones, and so is each whose name says Ada.
"""


def is_newer_than_image(gpu_type: str | None) -> bool:
    """Whether the image that the Dockerfile makes has no kernels for a GPU: each job would die there, and be paid."""
    if gpu_type is None:
        return False
    plain = re.sub(r"[^a-z0-9]", "", gpu_type.lower())
    return "ada" not in plain and _NEWER_GPU.search(plain) is not None


@dataclass(frozen=True, slots=True)
class Place:
    """One endpoint where runs are launched. Its launcher's `endpoint` is its address."""

    name: str
    launcher: Launcher
    gpu_type: str | None = None
    """Its GPU; None: the one that the job asks for."""
    gpu_count: int = 1
    """GPUs of one of its workers, all of which are billed."""
    price_per_hour: float | None = None
    """USD of one GPU; None: as the price table says."""
    slots: int | None = None
    """The most launches that may be there at the same time, of all workers together; None: no limit of its own."""
    serves: bool = False
    """Whether the endpoint that answers with adapters has this place's network volume."""
    takes_newer_gpus: bool = False
    """Whether its trainers may be for GPUs newer than the Dockerfile's image is for. See `is_newer_than_image`."""

    @property
    def endpoint(self) -> str:
        """Its address, as it stands in the rows."""
        return self.launcher.endpoint

    @property
    def keeps_served_adapters(self) -> bool:
        """Whether an adapter trained here can be put where it is answered from, and be removed there again."""
        return self.serves and self.launcher.takes_errands


class Places:
    """The places of this worker. `default` is the only one, or the first of the routing table."""

    def __init__(self, default: Place, *further: Place) -> None:
        self.default = default
        self.all = (default, *further)
        self._by_name = {place.name: place for place in self.all}
        self._by_endpoint = {place.endpoint: place for place in self.all}

    @property
    def launchers(self) -> tuple[str, ...]:
        """The names of the launchers, each once."""
        return tuple(dict.fromkeys(place.launcher.name for place in self.all))

    def named(self, name: str) -> Place:
        """The place of this name.

        Raises:
            KeyError: there is none.
        """
        return self._by_name[name]

    @property
    def serving(self) -> Place | None:
        """Where errands for the folder of served adapters go; None where no such place takes any."""
        return next((place for place in self.all if place.keeps_served_adapters), None)

    @property
    def errands(self) -> Place | None:
        """Where a request goes that is no training and needs no certain volume, such as an export; None: nowhere."""
        return next((place for place in self.all if place.launcher.takes_errands), None)

    def at(self, endpoint: str | None) -> Place | None:
        """The place whose endpoint this is; None where launches go to no such endpoint any more."""
        return self.default if endpoint is None else self._by_endpoint.get(endpoint)

    def launcher_at(self, endpoint: str | None) -> Launcher | None:
        """The launcher that looks after the launches of an endpoint; None where none may look there."""
        if (place := self.at(endpoint)) is not None:
            return place.launcher
        return next((each.launcher for each in self.all if endpoint and each.launcher.reaches(endpoint)), None)

    def guide_of(self, endpoint: str | None) -> Guide:
        """What operators are told of the launcher of an endpoint; of the default's where none looks there."""
        return (self.launcher_at(endpoint) or self.default.launcher).guide

    async def observe(self, launch: LaunchRef) -> Observation:
        """Look at a launch where it was made. See `Launcher.observe`."""
        launcher = self.launcher_at(launch.endpoint)
        if launcher is None:
            return Observation(LaunchState.UNKNOWN, reason=self._unreached())
        return await launcher.observe(launch)

    async def cancel(self, launch: LaunchRef) -> bool:
        """Ask for the end of a launch where it was made. See `Launcher.cancel`."""
        launcher = self.launcher_at(launch.endpoint)
        return launcher is not None and await launcher.cancel(launch)

    async def health(self, endpoint: str | None) -> EndpointHealth:
        """Whether an endpoint can take runs. See `Launcher.health`."""
        launcher = self.launcher_at(endpoint)
        if launcher is None:
            return EndpointHealth(False, 0, 0, self._unreached())
        return await launcher.health(endpoint)

    def longest_launch_seconds(self, endpoint: str | None) -> float:
        """How long a launch at an endpoint can live; where no launcher looks there, the longest of all."""
        launcher = self.launcher_at(endpoint)
        if launcher is not None:
            return launcher.longest_launch_seconds
        return max(place.launcher.longest_launch_seconds for place in self.all)

    def left_alone(self, made_by: str | None) -> str | None:
        """Why this worker does not touch a launch, for the operator: another launcher made it. None where it may."""
        if made_by is None or made_by in self.launchers:
            return None
        ours = " and ".join(self.launchers)
        return f"it was launched by {made_by}, and this worker launches by {ours}: start a worker that knows it"

    def _unreached(self) -> str:
        """Why nobody looks at an endpoint, with what to do, as the end of a sentence."""
        remedies = dict.fromkeys(place.launcher.guide.former_endpoint for place in self.all)
        return f"no key of today's settings is sent there: {'; or '.join(remedies)}"
