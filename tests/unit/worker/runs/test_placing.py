"""Where a run is launched, and when it leaves a place for another: never once its trainer may have begun."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from lora_worker.database.rows import Assignment, News
from lora_worker.duties import held_runs
from lora_worker.duties.daemon import Daemon
from lora_worker.errors import LaunchRefusedError
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.launchers.departures import Departures
from lora_worker.launchers.endpoints import EndpointView
from lora_worker.launchers.places import Place
from lora_worker.launchers.routing_table import RoutingTable
from lora_worker.runs import advance
from lora_worker.runs.applying import apply
from lora_worker.runs.outcomes.failures import CRASHED, NO_GPU_THERE
from lora_worker.runs.state.events import Ending, EndpointSeen, PutOff, Renewed, Settled, StopDecided
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps import launching, settling
from lora_worker.runs.steps.placing import MOST_LOOKED_FOR, choose_place, fall_back
from lora_worker.services import Services
from tests.scripted import Clock, FakeLauncher, FakeQueue, ForgetfulLauncher, assignment, make_services, note_settlings

TABLE = RoutingTable.model_validate(
    {
        "endpoints": {"a": {"slots": 1}, "b": {"launcher": "gpu-server", "endpoint": "https://b.example"}},
        "rules": [{"endpoints": ["a", "b"]}],
    }
)
A, B = FakeLauncher.endpoint, "https://b.example"
LONG = 16 * 60.0


class Other(FakeLauncher):
    name, endpoint = "gpu-server", B


def routed(launcher: Any = None, table: RoutingTable = TABLE) -> tuple[Services, FakeQueue]:
    queue = FakeQueue()
    first: Any = launcher or FakeLauncher()
    places = (Place("a", first, slots=1), Place("b", cast(Any, Other())))
    return make_services(queue=queue, launcher=first, routed_places=places, routes=table), queue


def order(external_job_id: str | None, **run: Any) -> Assignment:
    made = assignment(external_job_id, **run)
    assert made.job is not None
    return made.model_copy(update={"job": made.job.model_copy(update={"hyperparameters": {}})})


def claimed(services: Services, **run: Any) -> HeldRun:
    return HeldRun.take(services, order(None, **{"status": "claimed", **run}), asked_at=services.clock())


async def name_of(held: HeldRun) -> str:
    chosen = await choose_place(held)
    assert isinstance(chosen, Place), chosen
    return chosen.name


async def test_run_goes_to_the_first_free_place() -> None:
    services, queue = routed()
    assert await name_of(claimed(services)) == "a"
    queue.places[A] = {"launches": 1}
    assert await name_of(claimed(services)) == "b"


async def test_without_a_table_nobody_is_asked() -> None:
    services = make_services(queue=None)
    assert await choose_place(claimed(services)) is services.places.default


async def test_job_waits_in_the_queue_while_all_places_are_taken() -> None:
    services, queue = routed()
    queue.places |= {A: {"launches": 1}, B: {"held_seconds": 60.0}}
    assert await choose_place(claimed(services)) == Settled("queued")
    assert queue.calls == ["put_back_run"]


async def test_job_that_is_held_everywhere_is_held_as_at_the_first_place() -> None:
    services, queue = routed()
    queue.places |= {A: {"held_seconds": 60.0}, B: {"held_seconds": 60.0}}
    assert await name_of(claimed(services)) == "a", "its breaker says for what the job waits"
    assert queue.calls == []
    sent_before = claimed(services, launches=1)
    assert isinstance(await choose_place(sent_before), Settled | PutOff), "no breaker would hold it"


async def test_place_that_refused_the_run_is_passed_over_for_a_while() -> None:
    services, _ = routed()
    held = claimed(services)
    apply(held, PutOff("no machine is free", 30, refused_by="a"))
    assert await name_of(held) == "b"
    apply(held, PutOff("no machine is free", 30, refused_by="b"))
    assert await name_of(held) == "a", "that was the longer ago"
    cast(Clock, services.clock).now += 1
    apply(held, PutOff("no machine is free", 30, refused_by="a"))
    assert await name_of(held) == "b"


async def test_launch_in_doubt_is_sent_again_to_the_same_place() -> None:
    services, queue = routed()
    held = claimed(services)
    apply(held, PutOff("no answer", 30, doubtful_endpoint=B))
    assert await name_of(held) == "b", "only there it is found again"
    adopted = claimed(services, endpoint=B, posted_seconds_ago=5.0)
    assert await name_of(adopted) == "b"
    queue.places[B] = {"passed_over_seconds": 60.0}
    assert await name_of(adopted) == "b"
    assert queue.calls == []


async def test_launch_long_in_doubt_leaves_a_place_without_a_gpu() -> None:
    services, queue = routed()
    held = claimed(services, endpoint=B, posted_seconds_ago=LONG)
    queue.places[B] = {"without_gpu_seconds": LONG}
    assert await choose_place(held) == StopDecided(NO_GPU_THERE)
    assert queue.calls == ["withdraw_launch 1800"]


def waiting(services: Services, *, without_gpu: float = LONG, age: float = LONG, **run: Any) -> HeldRun:
    """A run that waits for a GPU at A."""
    launched = order("ext", **{"status": "launched", "endpoint": A, "posted_seconds_ago": age, **run})
    held = HeldRun.take(services, launched, asked_at=services.clock())
    apply(held, EndpointSeen(EndpointView(None, 0.0, without_gpu)))
    return held


QUEUED = Observation(LaunchState.QUEUED)


async def test_run_leaves_a_place_where_it_waits_in_vain() -> None:
    services, queue = routed()
    queue.places[A] = {"without_gpu_seconds": LONG}
    assert await fall_back(waiting(services), QUEUED) == StopDecided(NO_GPU_THERE)
    assert queue.calls == ["withdraw_launch 1800"]


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({"without_gpu": 60.0}, LaunchState.QUEUED),
        ({"age": 60.0}, LaunchState.QUEUED),
        ({"checked_in_at": "2026-11-27T00:00:00Z"}, LaunchState.QUEUED),
        ({}, LaunchState.RUNNING),
        ({}, LaunchState.UNKNOWN),
        ({}, LaunchState.MISSING),
    ],
)
async def test_run_that_may_have_started_or_waits_shortly_stays(changed: dict[str, Any], state: LaunchState) -> None:
    services, queue = routed()
    queue.places[A] = {"without_gpu_seconds": LONG}
    assert await fall_back(waiting(services, **changed), Observation(state)) is None
    assert queue.calls == []


@pytest.mark.parametrize("there", [{"without_gpu_seconds": LONG}, {"held_seconds": 9.0}, {"passed_over_seconds": 9.0}])
async def test_run_stays_where_no_other_place_is_free(there: dict[str, Any]) -> None:
    services, queue = routed()
    queue.places |= {A: {"without_gpu_seconds": LONG}, B: there}
    assert await fall_back(waiting(services), QUEUED) is None
    assert queue.calls == []


@pytest.mark.parametrize(("left", "calls"), [([A], 1), ([B], 1), ([A, B], 0)])
async def test_job_without_a_gpu_anywhere_does_not_go_to_and_fro(left: list[str], calls: int) -> None:
    services, queue = routed()
    queue.places[A] = {"without_gpu_seconds": LONG}
    for endpoint in left:
        queue.places[endpoint] = {**queue.places.get(endpoint, {}), "was_left": True}
    await fall_back(waiting(services), QUEUED)
    assert len(queue.calls) == calls


async def test_launch_in_doubt_does_not_go_to_and_fro_either() -> None:
    services, queue = routed()
    queue.places |= {A: {"was_left": True}, B: {"without_gpu_seconds": LONG, "was_left": True}}
    assert await name_of(claimed(services, endpoint=B, posted_seconds_ago=LONG)) == "b"
    assert queue.calls == []


async def test_trainer_that_checked_in_at_the_same_moment_keeps_its_run() -> None:
    services, queue = routed()
    queue.places[A] = {"without_gpu_seconds": LONG}
    held = waiting(services)
    queue.checked_in.add(held.assignment.run.id)
    assert await fall_back(held, QUEUED) is None
    assert held.stopping is None


async def test_job_is_queued_again_only_after_its_launch_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    endings = note_settlings(monkeypatch)
    cloud = ForgetfulLauncher(LaunchState.QUEUED)
    services, queue = routed(cloud)
    queue.places[A] = {"without_gpu_seconds": LONG}
    held = waiting(services)
    await advance.advance(held)
    assert (held.stopping, cloud.cancelled, endings) == (NO_GPU_THERE, [], [])

    async def refuse(_: Any) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(cloud, "cancel", refuse)
        await advance.advance(held)
        assert endings == [], "its end is not confirmed"
    await advance.advance(held)
    assert cloud.cancelled == ["ext"]
    (ending,) = endings
    assert (ending.failure, ending.look) == (NO_GPU_THERE, False)


def test_withdrawn_run_is_stopped_by_whoever_adopts_it() -> None:
    services, _ = routed()
    assert waiting(services, withdrawn_at="2026-11-27T00:00:00Z").stopping == NO_GPU_THERE


async def test_run_that_left_its_place_counts_as_no_failure() -> None:
    services, _ = routed()
    held = waiting(services, transient_failures=2, infrastructure_failures=9)
    outcome = settling._outcome(held, Ending(NO_GPU_THERE), None)
    assert (outcome["job_status"], outcome["fault"], outcome["retry_after_seconds"]) == ("queued", None, 0.0)
    assert outcome["notices"] == []


async def sent(held: HeldRun, place: str, monkeypatch: pytest.MonkeyPatch) -> Ending | PutOff:
    """What follows where the launcher of this place can't take the run's request."""

    async def refuse(*_: Any) -> str:
        raise LaunchRefusedError("the cloud", "no such request", status=400)

    chosen: Any = held.services.places.named(place)
    monkeypatch.setattr(chosen.launcher, "launch", refuse, raising=False)
    monkeypatch.setattr(launching, "replace", lambda policy, **_: policy)
    request: Any = SimpleNamespace(model_dump=lambda mode: {})
    answer = await launching.send(held, request, cast(Any, SimpleNamespace(place=chosen, policy=None)))
    assert isinstance(answer, Ending | PutOff)
    if isinstance(answer, PutOff):
        apply(held, answer)
    return answer


async def test_job_fails_only_when_every_place_that_fits_declines_it(monkeypatch: pytest.MonkeyPatch) -> None:
    services, queue = routed()
    held = claimed(services)
    apply(held, PutOff("no machine is free", 30, refused_by="a"))
    assert isinstance(await sent(held, "a", monkeypatch), PutOff), "it was busy before, which is no word on the request"
    queue.places[B] = {"held_seconds": 60.0}
    assert await choose_place(held) == Settled("queued"), "only b may take it, which is held for now"
    queue.places.clear()
    assert await name_of(held) == "b"
    assert isinstance(await sent(held, "b", monkeypatch), PutOff)
    ending = await sent(held, await name_of(held), monkeypatch)
    assert isinstance(ending, Ending)
    assert ending.failure is not None
    assert ending.failure.code == "request_invalid"


async def test_doubtful_launch_leaves_a_place_that_declines_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    services, queue = routed()
    held = claimed(services, endpoint=B, posted_seconds_ago=5.0)
    assert isinstance(await sent(held, "b", monkeypatch), PutOff)
    queue.places[A] = {"launches": 1}
    assert await choose_place(held) == Settled("queued"), "a is full now"
    queue.places.clear()
    assert await choose_place(held) == StopDecided(NO_GPU_THERE)


async def test_waiting_run_does_not_leave_for_a_place_that_refused_it() -> None:
    services, queue = routed()
    queue.places[A] = {"without_gpu_seconds": LONG}
    held = waiting(services)
    apply(held, PutOff("no machine is free", 30, refused_by="b"))
    assert await fall_back(held, QUEUED) is None
    assert queue.calls == []


async def test_no_more_runs_leave_than_the_target_has_free_slots() -> None:
    limited = TABLE.model_dump(exclude_none=True)
    limited["endpoints"]["b"]["slots"] = 2
    services, queue = routed(table=RoutingTable.model_validate(limited))
    queue.places |= {A: {"without_gpu_seconds": LONG}, B: {"launches": 1}}
    faster, first, second = waiting(services), waiting(services), waiting(services)
    queue.checked_in.add(faster.assignment.run.id)
    assert await fall_back(faster, QUEUED) is None, "it has stayed, and takes no slot there"
    queue.checked_in.clear()
    assert await fall_back(first, QUEUED) == StopDecided(NO_GPU_THERE)
    assert await fall_back(second, QUEUED) is None
    cast(Clock, services.clock).now += 301
    assert await fall_back(waiting(services), QUEUED) == StopDecided(NO_GPU_THERE)


async def test_doubtful_launch_at_no_place_gets_a_new_run() -> None:
    services, queue = routed()
    held = claimed(services, endpoint="https://former.example", posted_seconds_ago=5.0)
    queue.checked_in.add(held.assignment.run.id)
    assert isinstance(await choose_place(held), PutOff), "its trainer has begun"
    queue.checked_in.clear()
    assert await choose_place(held) == StopDecided(NO_GPU_THERE)


def test_run_withdrawn_by_a_lost_answer_is_stopped_at_its_renewal() -> None:
    services, _ = routed()
    held = waiting(services)
    row = {"run_id": held.assignment.run.id, "held": True, "withdrawn_at": "2026-11-27T00:00:00Z"}
    apply(held, Renewed(News.model_validate(row), services.clock()))
    assert held.stopping == NO_GPU_THERE


async def test_withdrawn_run_is_stopped_instead_of_being_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    services, queue = routed()
    held = claimed(services)

    async def begin(*_: Any, **__: Any) -> dict[str, Any]:
        return {"may_launch": False, "reason": "withdrawn"}

    monkeypatch.setattr(queue, "begin_launch", begin, raising=False)
    plan: Any = SimpleNamespace(place=services.places.default, init_adapter=None, rate=SimpleNamespace(model_dump=dict))
    request: Any = SimpleNamespace(output=SimpleNamespace(serving_name=None), channel=SimpleNamespace(token="t" * 64))
    assert await launching.begin_launch(held, request, plan) == StopDecided(NO_GPU_THERE)


def test_runs_that_left_a_place_are_not_told_as_attempts() -> None:
    services, _ = routed()
    held = waiting(services, attempt=9, transient_failures=2)
    outcome = settling._outcome(held, Ending(CRASHED), None)
    assert outcome["job_status"] == "failed"
    assert "3 attempts were made" in outcome["error_message"]


async def test_runs_that_wait_in_vain_ask_for_the_places_once_a_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    services, queue = routed()
    queue.places |= {A: {"without_gpu_seconds": LONG}, B: {"held_seconds": 9.0}}
    daemon = Daemon(services)
    runs = [waiting(services) for _ in range(3)]
    fresh, alone = waiting(services, age=60.0), waiting(services)
    daemon.runs.held |= {held.assignment.run.id: held for held in (*runs, fresh)}
    left: list[Any] = []

    async def work(held: HeldRun) -> None:
        left.append(await fall_back(held, QUEUED))

    monkeypatch.setattr(held_runs, "advance", work)
    await daemon.runs.poll(until_settled=True)
    assert left == [None] * 4
    assert queue.calls == ["training_places_of_runs 3"]
    assert [held.places_seen for held in runs] == [None] * 3, "the next cycle asks anew"
    assert (queue.places_asked, await fall_back(alone, QUEUED), queue.places_asked) == (3, None, 4)
    queue.places[B] = {}
    await daemon.runs.poll(until_settled=True)
    assert [each for each in left[4:] if each] == [StopDecided(NO_GPU_THERE)] * 3


async def test_run_that_can_not_be_read_keeps_no_other_from_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    services, queue = routed()
    daemon = Daemon(services)
    runs = [waiting(services) for _ in range(MOST_LOOKED_FOR + 2)]
    daemon.runs.held |= {held.assignment.run.id: held for held in runs}
    worked: list[HeldRun] = []

    async def work(held: HeldRun) -> None:
        worked.append(held)

    def base_model(held: HeldRun) -> str:
        if held is runs[0]:
            raise RecursionError("too deep")
        return "org/base"

    monkeypatch.setattr(held_runs, "advance", work)
    monkeypatch.setattr(held_runs, "base_model_of_leaving", base_model)
    with capture_logs() as logs:
        await daemon.runs.poll(until_settled=True)
    assert worked == runs
    assert queue.calls == [f"training_places_of_runs {MOST_LOOKED_FOR}"]
    assert [(entry["event"], entry["run_id"]) for entry in logs if entry["log_level"] == "error"] == [
        ("work on a run failed", runs[0].run_id)
    ]

    async def broken(*_: Any) -> Any:
        raise TypeError("odd rows")

    monkeypatch.setattr(held_runs, "look_for_all", broken)
    with capture_logs() as logs:
        await daemon.runs.poll(until_settled=True)
    assert worked == [*runs, *runs]
    assert "a round failed" in [entry["event"] for entry in logs]


def test_departure_that_took_too_long_is_given_back_without_an_error() -> None:
    clock = Clock()
    departures = Departures(clock)
    assert departures.book("a", 1)
    clock.now += 301
    assert not departures.book("a", 0)
    departures.give_back("a")
    assert departures.book("a", 1)
