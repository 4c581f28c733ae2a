"""A launch is polled at its own endpoint, and no row can make the worker send its key to a foreign host."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
import pytest
import respx

from lora_worker.launchers.addresses import Addresses
from lora_worker.launchers.base import EndpointHealth, LaunchRef, LaunchState, Observation
from lora_worker.launchers.places import Place, Places
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from lora_worker.runs.state.whereabouts import Whereabouts
from tests.scripted import GUIDE

OWN = "https://api.runpod.ai/v2/own"
FORMER = "https://api.runpod.ai/v2/former"


class Endpoints:
    """A launcher whose endpoints each report one state for every launch."""

    name = "runpod"
    guide = GUIDE
    longest_launch_seconds = 600.0
    takes_errands = True
    endpoint = OWN

    def __init__(self, states: Mapping[str | None, LaunchState]) -> None:
        self.states = states
        self.looked: list[str | None] = []
        self.cancelled: list[str | None] = []

    def reaches(self, endpoint: str) -> bool:
        return endpoint.startswith("https://api.runpod.ai/v2/")

    async def launch(self, payload: object, policy: object) -> str:
        raise NotImplementedError

    async def observe(self, launch: LaunchRef) -> Observation:
        self.looked.append(launch.endpoint)
        return Observation(self.states[launch.endpoint], reason="so it says")

    async def cancel(self, launch: LaunchRef) -> bool:
        self.cancelled.append(launch.endpoint)
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(True, 1, 0)


def only(launcher: Endpoints) -> Places:
    return Places(Place("default", launcher))


@pytest.mark.parametrize(
    ("endpoint", "called"),
    [
        (None, OWN),
        (OWN, OWN),
        (FORMER, FORMER),
        ("https://other.example/v2/named", "https://other.example/v2/named"),
        ("https://other.example/v2/own", None),
        ("https://other.example/v2/named/../own", None),
        ("http://api.runpod.ai/v2/own", None),
        ("https://api.runpod.ai.evil.example/v2/own", None),
        ("https://api.runpod.ai@evil.example/v2/own", None),
        ("https://api.runpod.ai/v2/own?x=/v2/own", None),
        ("https://api.runpod.ai/v2/..", None),
        ("https://api.runpod.ai/v2/a b", None),
        ("https://api.runpod.ai/v2/", None),
        ("https://api.runpod.ai/v2/own#", None),
        ("https://api.runpod.ai/v1/own", None),
        ("https://api.runpod.ai/v2/" + "x" * 101, None),
        ("own", None),
        ("", None),
    ],
)
def test_key_is_sent_only_to_the_own_api_and_named_endpoints(endpoint: str | None, called: str | None) -> None:
    assert Addresses(OWN, ["https://other.example/v2/named/"]).of(endpoint) == called


def test_address_without_a_path_has_no_other_endpoints() -> None:
    assert Addresses("https://gpu.example").of("https://evil.example") is None
    assert Addresses("https://gpu.example").of("https://gpu.example") == "https://gpu.example"


async def test_launch_at_a_foreign_address_is_unknown_and_gets_no_key() -> None:
    with respx.mock() as network:
        async with httpx.AsyncClient() as http:
            launcher = RunPodLauncher(OWN, "key", http=http)
            ref = LaunchRef("https://evil.example/v2/own", "job")
            seen = await launcher.observe(ref)
            assert (seen.state, "LORA_WORKER_FORMER_ENDPOINTS" in (seen.reason or "")) == (LaunchState.UNKNOWN, True)
            assert await launcher.cancel(ref) is False
            assert (await launcher.health(ref.endpoint)).reachable is False
        assert not network.calls


async def test_launch_is_polled_and_cancelled_at_its_own_endpoint() -> None:
    launcher = Endpoints({FORMER: LaunchState.RUNNING})
    places = Whereabouts.of(only(launcher), [FORMER])
    assert (await places.observe("job", FORMER))[0].state is LaunchState.RUNNING
    assert await places.cancel("job", FORMER)
    assert (launcher.looked, launcher.cancelled) == ([FORMER], [FORMER])


async def test_launch_with_an_assumed_endpoint_is_found_at_the_other() -> None:
    launcher = Endpoints({OWN: LaunchState.MISSING, FORMER: LaunchState.RUNNING})
    places = Whereabouts.of(only(launcher), [OWN, FORMER])
    seen, places = await places.observe("job", OWN)
    assert seen.state is LaunchState.RUNNING
    await places.cancel("job", OWN)
    assert launcher.cancelled == [FORMER]
    launcher.looked.clear()
    await places.observe("job", OWN)
    assert launcher.looked == [FORMER]


@pytest.mark.parametrize(
    ("former", "state"), [(LaunchState.UNKNOWN, LaunchState.UNKNOWN), (LaunchState.MISSING, LaunchState.MISSING)]
)
async def test_launch_is_missing_only_if_every_endpoint_says_so(former: LaunchState, state: LaunchState) -> None:
    places = Whereabouts.of(only(Endpoints({OWN: LaunchState.MISSING, FORMER: former})), [OWN, FORMER])
    assert (await places.observe("job", OWN))[0].state is state


async def test_launch_past_its_lifetime_is_gone_without_an_answer() -> None:
    places = Whereabouts.of(only(Endpoints({FORMER: LaunchState.UNKNOWN})), [FORMER])
    young, _ = await places.observe("job", FORMER, age_seconds=599)
    old, _ = await places.observe("job", FORMER, age_seconds=601)
    assert (young.state, old.state) == (LaunchState.UNKNOWN, LaunchState.MISSING)
    assert FORMER in (places.unseen("job", FORMER, young) or "")
    assert places.unseen("job", FORMER, old) is None
