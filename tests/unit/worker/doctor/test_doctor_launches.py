"""The doctor reports unreachable launches, GPUs without a run, and why jobs are held."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lora_worker.doctor.check import Check
from lora_worker.doctor.endpoint import check_launches
from lora_worker.launchers.base import EndpointHealth
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
    return await check_launches(make_services(queue=queue, launcher=cast(Any, Endpoints())))


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
