"""Launches that no row names are found by their launcher's own list; none of them works on for nobody."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from lora_worker.configuration.settings import Settings
from lora_worker.database.answers import OwnedFound
from lora_worker.duties.daemon import Daemon
from lora_worker.duties.owned_launches import OwnedLaunches
from lora_worker.errors import ServiceUnavailableError
from lora_worker.launchers.base import LaunchRef, OwnedLaunch
from lora_worker.launchers.places import Place
from lora_worker.services import Services
from tests.scripted import Clock, FakeLauncher, FakeQueue, make_services

RUN = str(uuid4())


class Pods(FakeLauncher):
    """A launcher that lists what lives in its account."""

    name = "pods"

    def __init__(self, *owned: OwnedLaunch, endpoint: str = "https://pods.example/v2") -> None:
        super().__init__()
        self.endpoint = endpoint
        self.lives = list(owned)
        self.lists = 0
        self.away: ServiceUnavailableError | None = None
        self.cancelled: list[LaunchRef] = []

    @property
    def account(self) -> str:
        return self.endpoint.partition("#")[0]

    async def owned(self) -> list[OwnedLaunch]:
        self.lists += 1
        if self.away:
            raise self.away
        return self.lives

    async def cancel(self, launch: LaunchRef) -> bool:
        self.cancelled.append(launch)
        return True


class Records(FakeQueue):
    """A database that says of each launch what the test sets; the rest is known."""

    def __init__(self, **found: Any) -> None:
        super().__init__()
        self.found = found
        self.asked: list[tuple[str, str, list[dict[str, str]]]] = []

    async def note_owned_launches(
        self, launches: list[dict[str, str]], *, launcher: str, endpoint: str
    ) -> list[OwnedFound]:
        self.asked.append((launcher, endpoint, launches))
        return [
            {"external_job_id": name, "run_id": RUN, "found": self.found[name]}
            for name in (each["external_job_id"] for each in launches)
            if name in self.found
        ]


def services(launcher: FakeLauncher, url: str = "https://abc.supabase.co", **more: Any) -> Services:
    made = make_services()
    settings = Settings(**{**made.settings.model_dump(), "supabase_url": url})
    return make_services(launcher=launcher, settings=settings, **more)


def owned(name: str, age_seconds: float | None = 60.0) -> OwnedLaunch:
    return OwnedLaunch(name, RUN, age_seconds)


async def test_what_lives_is_compared_with_what_was_recorded() -> None:
    launcher, queue = Pods(owned("known"), owned("new"), owned("back")), Records(new="noted", back="reopened")
    with capture_logs() as logs:
        duty = OwnedLaunches(services(launcher, queue=queue))
        assert (await duty.run_once()).done == 2
        await duty.run_once()
    ((name, endpoint, launches), _) = queue.asked
    assert (name, endpoint, len(launches)) == ("pods", launcher.endpoint, 3)
    assert launches[0] == {"external_job_id": "known", "run_id": RUN}
    assert [entry["external_job_id"] for entry in logs] == ["new", "back"], "each is told once"
    assert launcher.cancelled == []


async def test_launch_of_an_unknown_run_is_told_and_ended_after_an_hour() -> None:
    launcher, clock = Pods(owned("old", 3600.0), owned("young", 3599.0), owned("ageless", None)), Clock()
    queue = Records(old="no_run", young="no_run", ageless="no_run")
    duty = OwnedLaunches(services(launcher, queue=queue, clock=clock))
    with capture_logs() as logs:
        await duty.run_once()
        assert launcher.cancelled == [LaunchRef(launcher.endpoint, "old")]
        launcher.lives = launcher.lives[1:]
        clock.now += 3600
        await duty.run_once()
    assert [ref.external_job_id for ref in launcher.cancelled] == ["old", "young", "ageless"]
    assert {entry["action"] for entry in logs} == {"owned.unknown", "owned.ended"}


@pytest.mark.parametrize("url", ["http://127.0.0.1:54321", "http://kong:8000", "https://10.0.0.7", "http://db.local."])
async def test_launch_under_a_private_address_may_be_anothers_and_is_only_told(url: str) -> None:
    launcher = Pods(owned("old", 10**6))
    with capture_logs() as logs:
        await OwnedLaunches(services(launcher, url, queue=Records(old="no_run"))).run_once()
    assert launcher.cancelled == []
    assert [entry["action"] for entry in logs] == ["owned.unknown"]


async def test_launch_under_another_runs_id_is_told_and_left() -> None:
    launcher = Pods(owned("taken", 10**6))
    with capture_logs() as logs:
        await OwnedLaunches(services(launcher, queue=Records(taken="another_runs"))).run_once()
    assert launcher.cancelled == []
    assert [(entry["found"], entry["event"]) for entry in logs] == [
        ("another_runs", "a launch is recorded for another run")
    ]


async def test_place_that_is_away_keeps_no_other_from_being_compared() -> None:
    away, well = Pods(), Pods(owned("new"), endpoint="https://pods.example/eu")
    away.away = ServiceUnavailableError("Pods", "away")
    queue = Records(new="noted")
    duty = OwnedLaunches(
        services(
            away,
            queue=queue,
            routed_places=(Place("us", away), Place("eu", well), Place("runpod", FakeLauncher())),
        )
    )
    with pytest.raises(ServiceUnavailableError):
        await duty.run_once()
    assert [endpoint for _, endpoint, _ in queue.asked] == [well.endpoint]


async def test_account_of_several_places_is_listed_once() -> None:
    launchers = [Pods(owned("new"), endpoint=f"https://pods.example/{name}") for name in ("us#H100", "us#L4", "eu#L4")]
    queue = Records(new="noted")
    places = tuple(Place(each.endpoint[-5:], each) for each in launchers)
    await OwnedLaunches(services(launchers[0], queue=queue, routed_places=places)).run_once()
    assert [each.lists for each in launchers] == [1, 0, 1]
    assert [endpoint for _, endpoint, _ in queue.asked] == [launchers[0].endpoint, launchers[2].endpoint]


async def test_only_workers_of_such_launchers_have_the_duty() -> None:
    assert "owned" in {duty.name for duty in Daemon(services(Pods())).duties()}
    assert "owned" not in {duty.name for duty in Daemon(services(FakeLauncher())).duties()}
