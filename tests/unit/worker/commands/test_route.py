"""`lora-worker route`: which endpoint a job gets, why others are passed over, and what it would cost there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from lora_worker.database.answers import PlaceRow
from lora_worker.database.job_reports import JobDetails
from lora_worker.launchers.places import Place
from lora_worker.launchers.routing_table import RoutingTable
from tests.commands import check_keys, give_services, run_command
from tests.scripted import FakeLauncher, FakeQueue, make_services
from tests.unit.worker.commands.job_data import JOB, OperatorQueue, details

pytestmark = pytest.mark.usefixtures("environment")

TABLE = RoutingTable.model_validate(
    {
        "endpoints": {"a": {"slots": 1}, "b": {"endpoint": "https://b.example", "gpu_type": "H200"}},
        "rules": [{"method": "dpo", "endpoints": ["a"]}, {"parameters_at_most": 8, "endpoints": ["a", "b"]}],
    }
)


class There(FakeLauncher):
    endpoint = "https://b.example"


class Queue(OperatorQueue):
    """A job whose dataset has a million tokens, and the places as a test sets them."""

    def __init__(self) -> None:
        super().__init__()
        self.about = FakeQueue()

    async def training_job_details(self, job_id: UUID) -> JobDetails | None:
        told = details(job_id)
        told["job"]["estimate"] = {"tokens": 1_000_000}
        told["runs"][0]["ended_at"] = "2026-11-26T12:00:00+00:00"
        return told

    async def training_places(
        self, endpoints: Sequence[str], *, base_model: str, run_id: UUID | None = None
    ) -> list[PlaceRow]:
        return await self.about.training_places(endpoints, base_model=base_model, run_id=run_id)

    async def training_run_speed(self, base_model: str, gpu_type: str) -> None:
        return None


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    places = (
        Place("a", cast(Any, FakeLauncher()), "H100", slots=1),
        Place("b", cast(Any, There()), "H200", 2, price_per_hour=3.5),
    )
    give_services(monkeypatch, make_services(queue=made, routed_places=places, routes=TABLE))
    return made


def routed() -> dict[str, Any]:
    done = run_command("route", str(JOB), "--json")
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_route_names_the_rule_and_the_price_at_each_place(queue: Queue) -> None:
    told = routed()
    check_keys("route", told, opaque=())
    assert (told["rule"], told["place"]) == (2, "a")
    first, second = told["candidates"]
    assert (first["gpu_type"], first["hurdle"], second["price_per_hour"], second["gpu_count"]) == ("H100", None, 3.5, 2)
    assert 0 < first["estimate"]["cost"]["low"] < first["estimate"]["cost"]["high"]


def test_route_says_why_a_place_is_passed_over(queue: Queue) -> None:
    queue.about.places[FakeLauncher.endpoint] = {"launches": 1}
    told = routed()
    assert told["place"] == "b"
    assert (told["candidates"][0]["hurdle"], told["candidates"][0]["launches"]) == ("full", 1)
    text = run_command("route", str(JOB)).stdout
    assert "rule 2 matches, for parameters_at_most 8.0" in text
    assert "all of its 1 slots are taken" in text
    assert "→ b" in text


def test_route_says_that_a_job_would_wait(queue: Queue) -> None:
    queue.about.places |= {FakeLauncher.endpoint: {"launches": 1}, There.endpoint: {"held_seconds": 120.0}}
    assert routed()["place"] is None
    assert "it would wait in the queue" in run_command("route", str(JOB)).stdout


def test_without_a_table_there_is_one_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    give_services(monkeypatch, make_services(queue=Queue()))
    told = routed()
    assert (told["table"], told["rule"], told["place"]) == (None, None, "default")
    assert "without a routing table, so it gets the only endpoint" in run_command("route", str(JOB)).stdout
