"""The doctor reports unreachable launches, GPUs without a run, and why jobs are held."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lora_worker.doctor.check import Check
from lora_worker.doctor.endpoint import EndpointChecks
from lora_worker.launchers.base import EndpointHealth
from lora_worker.launchers.places import Place
from tests.scripted import GUIDE, FakeLauncher, FakeQueue, make_services

OWN, FORMER = FakeLauncher.endpoint, "https://api.runpod.ai/v2/former"
HEALTH: dict[str, Any] = {"runs": [], "endpoints": [], "held": {"breakers": [], "endpoint_problems": []}}


class Endpoints(FakeLauncher):
    """The current endpoint works on one job; the key may not call the former one."""

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        if endpoint == FORMER:
            return EndpointHealth(False, 0, 0, "RunPod refused the API key (401): check GPU_CLUSTER_API_KEY")
        return EndpointHealth(True, 1, 0, running=1, jobs_running=1)


async def checks(**health: Any) -> list[Check]:
    queue = FakeQueue()

    async def answer() -> dict[str, Any]:
        return {**HEALTH, **health}

    queue.health = answer  # type: ignore[method-assign]
    services = make_services(queue=queue, launcher=cast(Any, Endpoints()))
    return await EndpointChecks(services).check_launches(services)


def launches(endpoint: str | None, count: int = 1, launcher: str = "runpod") -> dict[str, Any]:
    return {"launcher": launcher, "endpoint": endpoint, "launches": count}


async def test_launches_at_the_configured_endpoint_pass() -> None:
    assert await checks(endpoints=[launches(OWN)]) == []


@pytest.mark.parametrize(
    ("rows", "words", "remedy"),
    [
        ([launches(OWN), launches(FORMER, 2)], "2 launches at https://api.runpod.ai/v2/former", GUIDE.former_endpoint),
        ([launches(OWN), launches("x", 1, "modal")], "1 launch by modal, which this worker is not", "start a worker"),
        ([], "1 more of its GPUs work than this database has launches there (0)", "cancel them there"),
    ],
)
async def test_unreachable_launches_and_gpus_without_a_run_are_reported(
    rows: list[dict[str, Any]], words: str, remedy: str
) -> None:
    (check,) = await checks(endpoints=rows)
    assert check.ok is False
    assert words in check.finding
    assert remedy in check.remedy


async def test_reason_why_a_run_waits_is_reported() -> None:
    runs = [{"run_id": "r", "problem": "its launch can't be looked at"}, {"run_id": "s", "problem": None}]
    (check,) = await checks(endpoints=[launches(OWN)], runs=runs)
    assert (check.ok, "its launch can't be looked at" in check.finding) == (False, True)


@pytest.mark.parametrize(
    ("kind", "name", "words", "remedy"),
    [("base_model", "org/base", "the base model org/base", "resume org/base"), ("image", "", "the image", OWN)],
)
async def test_held_jobs_are_reported_with_the_command_to_resume_them(
    kind: str, name: str, words: str, remedy: str
) -> None:
    breaker = {
        "kind": kind, "name": name, "endpoint": OWN, "jobs": 3, "users": 2, "error_code": "child_crashed",
        "error_message": "It broke.", "probe_in_seconds": 60.0,
    }  # fmt: skip
    held = {"breakers": [breaker], "endpoint_problems": []}
    (check,) = await checks(endpoints=[launches(OWN)], held=held)
    assert check.ok is False
    assert "3 jobs held" in check.finding
    assert words in check.finding
    assert remedy in check.remedy


class Machines(FakeLauncher):
    """A cloud that starts a machine for each run, and takes no other request."""

    name, takes_errands = "machines", False

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.looks = 0

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        self.looks += 1
        return EndpointHealth(True, 1, 0)


async def answer() -> dict[str, Any]:
    return HEALTH


async def test_each_place_is_looked_at_once() -> None:
    machines = [Machines(f"machines:{name}") for name in "ab"]
    queue = FakeQueue()
    queue.health = answer  # type: ignore[method-assign]
    places = tuple(Place(each.endpoint, cast(Any, each)) for each in machines)
    services = make_services(queue=queue, routed_places=places)
    endpoints = EndpointChecks(services)
    assert [check.ok for check in await endpoints.check_endpoint(services)] == [True, True, None]
    assert await endpoints.check_launches(services) == []
    assert [each.looks for each in machines] == [1, 1]


@pytest.mark.parametrize(
    ("places", "serves", "words"),
    [
        ("rm", True, ("trained at m can't be called by a name", "to r; `lora-worker download`")),
        ("m", True, ("trained at The cloud can't be called by a name", "LORA_WORKER_SERVE_ADAPTERS=false")),
        ("m", False, None),
        ("r", True, None),
    ],
)
async def test_place_that_serves_nothing_is_told(places: str, serves: bool, words: tuple[str, str] | None) -> None:
    made = {"r": Place("r", cast(Any, FakeLauncher()), serves=True), "m": Place("m", cast(Any, Machines("m:")))}
    services = make_services(routed_places=tuple(made[name] for name in places))
    services.settings.serve_adapters = serves
    told = [check for check in await EndpointChecks(services).check_endpoint(services) if check.subject == "serving"]
    assert len(told) == (words is not None)
    if words is not None:
        assert words[0] in told[0].finding
        assert words[1] in told[0].remedy
