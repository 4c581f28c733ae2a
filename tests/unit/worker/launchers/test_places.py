"""Each launch is looked at and stopped by the launcher that made it, and its key goes nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from lora_worker.launchers.base import EndpointHealth, Guide, LaunchRef, LaunchState, Observation
from lora_worker.launchers.places import Place, Places

CLOUD, BOX, FORMER = "https://cloud.example/v2/now", "https://box.example", "https://cloud.example/v2/former"


class Launcher:
    """Reaches what begins with its root, and notes what it was asked."""

    def __init__(self, name: str, endpoint: str, root: str, longest_launch_seconds: float) -> None:
        self.name, self.endpoint, self._root = name, endpoint, root
        self.longest_launch_seconds = longest_launch_seconds
        self.takes_errands = True
        self.guide = Guide(name, "its console", "check it", f"name it in {name.upper()}_FORMER", "No volume.")
        self.asked: list[tuple[str, str | None]] = []

    def reaches(self, endpoint: str) -> bool:
        return endpoint.startswith(self._root)

    async def launch(self, payload: object, policy: object) -> str:
        raise NotImplementedError

    async def observe(self, launch: LaunchRef) -> Observation:
        self.asked.append(("observe", launch.endpoint))
        return Observation(LaunchState.RUNNING)

    async def cancel(self, launch: LaunchRef) -> bool:
        self.asked.append(("cancel", launch.endpoint))
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        self.asked.append(("health", endpoint))
        return EndpointHealth(True, 1, 0)


@pytest.fixture
def launchers() -> tuple[Any, Any]:
    return Launcher("cloud", CLOUD, "https://cloud.example/v2/", 600), Launcher("box", BOX, BOX, 900)


@pytest.fixture
def places(launchers: tuple[Any, Any]) -> Places:
    return Places(Place("default", launchers[0]), Place("own", launchers[1], gpu_count=2))


@pytest.mark.parametrize(
    ("endpoint", "asked"), [(None, 0), (CLOUD, 0), (FORMER, 0), (BOX, 1), ("https://elsewhere.example/x", None)]
)
async def test_launch_is_handled_by_the_launcher_of_its_endpoint(
    places: Places, launchers: tuple[Any, Any], endpoint: str | None, asked: int | None
) -> None:
    ref = LaunchRef(endpoint, "job")
    seen = await places.observe(ref)
    cancelled, health = await places.cancel(ref), await places.health(endpoint)
    calls = [("observe", endpoint), ("cancel", endpoint), ("health", endpoint)]
    assert [each.asked for each in launchers] == [calls if number == asked else [] for number in range(2)]
    assert (seen.state is LaunchState.RUNNING, cancelled, health.reachable) == (asked is not None,) * 3
    if asked is None:
        # Never MISSING: the run would be started again while its launch may live.
        assert seen.state is LaunchState.UNKNOWN
        assert "CLOUD_FORMER" in (seen.reason or "")
        assert "BOX_FORMER" in (health.problem or "")


def test_place_is_found_by_its_name_and_its_endpoint(places: Places) -> None:
    assert places.named("own").gpu_count == 2
    assert (places.at(BOX), places.at(None), places.at(FORMER)) == (places.named("own"), places.default, None)
    with pytest.raises(KeyError):
        places.named("nowhere")


@pytest.mark.parametrize(
    ("serves", "takes_errands", "kept_at"),
    [((True, False), (True, True), "a"), ((True, True), (False, True), "b"), ((True, False), (False, True), None)],
)
def test_served_adapters_are_kept_where_they_can_be_removed(
    launchers: tuple[Any, Any], serves: tuple[bool, bool], takes_errands: tuple[bool, bool], kept_at: str | None
) -> None:
    made = []
    for name, launcher, is_served, takes in zip("ab", launchers, serves, takes_errands, strict=True):
        launcher.takes_errands = takes
        made.append(Place(name, launcher, serves=is_served))
    serving = Places(*made).serving
    assert (serving and serving.name) == kept_at


def test_lifetime_of_a_launch_nobody_reaches_is_the_longest_of_all(places: Places) -> None:
    assert [places.longest_launch_seconds(endpoint) for endpoint in (CLOUD, BOX, "x")] == [600, 900, 900]


def test_launch_of_another_launcher_is_left_alone(places: Places) -> None:
    assert places.launchers == ("cloud", "box")
    assert [places.left_alone(name) for name in (None, "cloud", "box")] == [None] * 3
    assert "modal" in (places.left_alone("modal") or "")
