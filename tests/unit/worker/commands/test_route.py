"""`lora-worker route`: which endpoint a job gets, why others are passed over, and what it would cost there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from lora_worker.commands.route_views import notice_of
from lora_worker.database.answers import PlaceRow
from lora_worker.database.job_reports import JobDetails
from lora_worker.launchers.base import EndpointHealth
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


class Dead(FakeLauncher):
    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(False, 0, 0, "not reachable")


class There(FakeLauncher):
    endpoint = "https://b.example"


class Queue(OperatorQueue):
    """A job whose dataset has a million tokens, and the places as a test sets them."""

    def __init__(self) -> None:
        super().__init__()
        self.about = FakeQueue()
        self.estimate: dict[str, Any] | None = {"tokens": 1_000_000}
        self.hyperparameters: dict[str, Any] = {"epochs": 2}

    async def training_job_details(self, job_id: UUID) -> JobDetails | None:
        told = details(job_id)
        told["job"]["estimate"] = self.estimate
        told["job"]["hyperparameters"] = self.hyperparameters
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


def test_route_says_that_nobody_answers_at_the_chosen_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    queue.about.places[FakeLauncher.endpoint] = {"without_gpu_seconds": 24.0}
    places = (Place("a", cast(Any, Dead()), "H100", slots=1), Place("b", cast(Any, There()), "H200"))
    give_services(monkeypatch, make_services(queue=queue, routed_places=places, routes=TABLE))
    first, second = routed()["candidates"]
    assert (first["hurdle"], first["notice"], second["notice"]) == (
        None,
        "not reachable, since 24 s; passed over after 15 min",
        None,
    )
    assert "chosen; not reachable, since 24 s" in " ".join(run_command("route", str(JOB)).stdout.split())
    give_services(monkeypatch, make_services(queue=queue, launcher=Dead()))
    assert routed()["candidates"][0]["notice"] == "not reachable", "without a table nothing is passed over"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (EndpointHealth(True, 1, 0, ready=1), None),
        (EndpointHealth(True, 0, 3), "jobs wait there without a GPU, since 1 min 00 s; passed over after 15 min"),
        (EndpointHealth(False, 0, 0), "nobody answers, since 1 min 00 s; passed over after 15 min"),
    ],
)
def test_notice_names_what_keeps_a_run_waiting_there(seen: EndpointHealth, said: str | None) -> None:
    assert notice_of(seen, 60, 15) == said


def test_a_base_model_that_is_not_offered_gets_no_endpoint(queue: Queue) -> None:
    queue.hyperparameters = {"base_model": "nobody/knows-it"}
    done = run_command("route", str(JOB))
    assert done.exit_code == 2
    assert "the job gets no endpoint: hyperparameters: base_model 'nobody/knows-it' is not offered" in done.stderr


def test_route_says_why_it_knows_no_cost(queue: Queue) -> None:
    assert "what it would cost is not known" not in run_command("route", str(JOB)).stdout
    queue.estimate = None
    assert "what it would cost is not known: no worker has run" in run_command("route", str(JOB)).stdout
