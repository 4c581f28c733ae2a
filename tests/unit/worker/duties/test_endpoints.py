"""The endpoint's counts show workers that never get ready and GPUs without a run, and both are logged."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest

from lora_worker.commands.status import status_lines
from lora_worker.duties.daemon import Daemon
from lora_worker.duties.endpoints import EndpointWatch
from lora_worker.errors import ServiceUnavailableError
from lora_worker.launchers.base import EndpointHealth, EndpointState, LaunchState
from lora_worker.launchers.endpoints import EndpointView, launches_at, starting_too_long, unowned_work
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from lora_worker.runs import advance
from lora_worker.runs.outcomes.failures import NEVER_READY
from lora_worker.runs.state.held_run import HeldRun
from tests.scripted import GUIDE, FakeLauncher, ForgetfulLauncher, assignment, make_services

OWN = FakeLauncher.endpoint


@pytest.mark.parametrize(
    ("workers", "jobs", "state", "words"),
    [
        ({"unhealthy": 1}, {"inQueue": 2}, "starting", "the image fails at its start"),
        ({"unhealthy": 1, "initializing": 1}, {"inQueue": 1}, "starting", "the image fails at its start"),
        ({"initializing": 1}, {"inQueue": 1}, "starting", None),
        ({"unhealthy": 1, "running": 1}, {"inQueue": 1, "inProgress": 1}, "well", None),
        ({"unhealthy": 1, "idle": 1, "ready": 1}, {"inQueue": 1}, "well", None),
        ({"unhealthy": 1}, {"inQueue": 0}, "well", None),
        ({"throttled": 2}, {"inQueue": 1}, "unknown", "no free GPU"),
        ({}, {"inQueue": 1}, "unknown", "workersMax"),
        ({}, {}, "well", None),
    ],
)
async def test_endpoint_health_separates_failing_starts_from_no_gpus(
    workers: dict[str, int], jobs: dict[str, int], state: str, words: str | None
) -> None:
    answer = httpx.MockTransport(lambda _: httpx.Response(200, json={"jobs": jobs, "workers": workers}))
    async with httpx.AsyncClient(transport=answer) as http:
        health = await RunPodLauncher(OWN, "key", http=http).health()
    assert health.state is EndpointState(state)
    assert (health.problem is None) if words is None else words in (health.problem or "")


@pytest.mark.parametrize(
    ("state", "starting", "age", "waits"),
    [
        (LaunchState.QUEUED, 600, 700, True),
        (LaunchState.QUEUED, 599, 700, False),
        # A launch made while workers were already starting has its own time limit.
        (LaunchState.QUEUED, 6000, 599, False),
        (LaunchState.RUNNING, 6000, 6000, False),
        (LaunchState.UNKNOWN, 6000, 6000, False),
    ],
)
def test_launch_waits_its_limit_for_starting_workers(
    state: LaunchState, starting: float, age: float, waits: bool
) -> None:
    view = EndpointView(None, starting)
    assert view.keeps_waiting(state, launch_age_seconds=age, limit_seconds=600) is waits


@pytest.mark.parametrize(("running", "in_progress", "launches", "surplus"), [(1, 1, 1, 0), (3, 2, 1, 2), (0, 2, 0, 2)])
def test_gpus_without_a_run_are_counted(running: int, in_progress: int, launches: int, surplus: int) -> None:
    seen = EndpointHealth(True, running, 0, running=running, jobs_running=in_progress)
    problem = unowned_work(seen, launches, GUIDE)
    assert (problem is None) if surplus == 0 else (problem or "").startswith(f"{surplus} more of its GPUs")
    assert (GUIDE.console in (problem or "")) is (surplus > 0)


def test_launches_are_counted_at_each_possible_endpoint() -> None:
    rows = [{"endpoint": OWN, "launches": 2}, {"endpoint": None, "launches": 1}, {"endpoint": "there", "launches": 9}]
    assert launches_at(OWN, {"endpoints": rows}) == 3


def test_long_start_is_logged_from_half_its_limit_on() -> None:
    assert starting_too_long(1799, 3600, GUIDE) is None
    assert "30 minutes" in (starting_too_long(1800, 3600, GUIDE) or "")


class Endpoint(ForgetfulLauncher):
    """A launcher whose launches stay queued, at an endpoint with these counts."""

    def __init__(self, **counts: Any) -> None:
        super().__init__(LaunchState.QUEUED)
        self.counts = counts

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(True, 0, **{"jobs_queued": 1, **self.counts})


def daemon_at(launcher: Endpoint, monkeypatch: pytest.MonkeyPatch, *, starting_seconds: float) -> Daemon:
    services = make_services(launcher=cast(Any, launcher))
    queue: Any = services.queue

    async def note_endpoint(**_: Any) -> dict[str, float]:
        return {"starting_seconds": starting_seconds, "without_gpu_seconds": 0.0}

    monkeypatch.setattr(queue, "note_endpoint", note_endpoint)
    queue.to_adopt = [assignment(status="launched", posted_seconds_ago=7000)]
    return Daemon(services)


async def test_a_launch_is_stopped_when_its_workers_never_get_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = daemon_at(Endpoint(unhealthy=1, problem="the image fails"), monkeypatch, starting_seconds=3600)
    await daemon.runs.adopt()
    (holding,) = daemon.runs.held.values()
    with pytest.raises(ServiceUnavailableError, match="the image fails"):
        await daemon.endpoints.run_once()
    await advance.advance(holding)
    assert holding.stopping == NEVER_READY
    assert holding.report is not None
    assert holding.report["job"]["current_stage"] == "waiting_for_gpu"


async def test_start_within_its_limit_is_not_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = daemon_at(Endpoint(starting=1), monkeypatch, starting_seconds=1200)
    await daemon.runs.adopt()
    (holding,) = daemon.runs.held.values()
    await daemon.endpoints.run_once()
    await advance.advance(holding)
    assert holding.stopping is None
    assert holding.report is not None
    assert holding.report["job"]["current_stage"] == "queued_on_gpu"


async def test_gpus_without_a_run_are_logged_when_seen_twice(capsys: pytest.CaptureFixture[str]) -> None:
    services = make_services(launcher=cast(Any, Endpoint(jobs_queued=0, running=2, jobs_running=2)))
    watch = EndpointWatch(services, {})
    await watch.run_once()
    assert "more of its GPUs" not in capsys.readouterr().out
    for _ in range(3):
        await watch.run_once()
    assert capsys.readouterr().out.count("2 more of its GPUs") == 1


async def test_endpoint_that_this_worker_cannot_reach_gets_no_note_of_it() -> None:
    """Another worker may reach it: no jobs pass it over for want of this worker's key."""
    services = make_services(launcher=cast(Any, Endpoint(jobs_queued=0)))
    cast(Any, services.places.default.launcher).reaches = lambda endpoint: False
    there = assignment("ext", status="launched", endpoint="https://there.example", posted_seconds_ago=5.0)
    held = HeldRun.take(services, there, asked_at=services.clock())
    await EndpointWatch(services, {there.run.id: held}).run_once()
    notes = [call for call in cast(Any, services.queue).calls if call.startswith("note_endpoint")]
    assert len(notes) == 1, "of its own endpoint"
    assert "no key" in str(held.endpoint.problem)


async def test_wait_for_gpus_does_not_make_the_worker_unready() -> None:
    services = make_services(launcher=cast(Any, Endpoint(problem="no free GPU")))
    daemon = Daemon(services)
    await daemon.endpoints.run_once()
    assert "no free GPU" not in (daemon.problem or "")


def test_status_command_shows_held_jobs_and_problems() -> None:
    health = {
        "runs": [{"job_id": "12345678-9", "problem": "it can't be looked at"}, {"job_id": "2", "problem": None}],
        "endpoints": [
            {"launcher": "runpod", "endpoint": OWN, "launches": 1},
            {"launcher": "runpod", "endpoint": "there", "launches": 2},
        ],
        "held": {
            "operator_holds": [{"user_id": None, "reason": "an upgrade", "held_seconds": 3600.0}],
            "endpoint_problems": [{"endpoint": OWN, "problem": "the image fails", "starting_seconds": 90.0}],
            "breakers": [
                {"kind": "base_model", "name": "org/base", "endpoint": OWN, "jobs": 3, "users": 2,
                 "error_code": "child_crashed", "probe_in_seconds": 600.0},
            ],
        },
    }  # fmt: skip
    assert status_lines(health) == [
        "held by an operator for 1 h 00 min: all jobs (an upgrade)",
        "job 12345678: it can't be looked at",
        f"endpoint {OWN}: the image fails (starting for 1 min 30 s)",
        f"held: 3 jobs, for org/base at {OWN} (child_crashed, 2 users); next try in 10 min 00 s, "
        "or `lora-worker resume`",
        f"1 launches at {OWN} (runpod)",
        "2 launches at there (runpod)",
    ]
