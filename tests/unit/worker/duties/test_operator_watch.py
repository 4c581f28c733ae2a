"""Operators are told of each lasting condition once, by one worker, also while the database is away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lora_worker.database.queue_health import QueueHealth
from lora_worker.duties.daemon import Daemon
from lora_worker.duties.operator_watch import AGAIN_SECONDS, UNREADY_SECONDS, OperatorWatch, conditions_of_queue
from lora_worker.errors import ServiceUnavailableError
from lora_worker.observability.outbox import OperatorNotice, Outbox
from lora_worker.observability.readiness import Readiness
from tests.scripted import Clock, FakeQueue, make_services

AWAY = ServiceUnavailableError("Supabase's database", "Supabase's database is away")


class Notes(Outbox):
    """An outbox that keeps what is posted."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[OperatorNotice] = []

    @property
    def is_open(self) -> bool:
        return True

    def post(self, notice: OperatorNotice) -> None:
        self.posted.append(notice)


BREAKER = {
    "kind": "base_model", "name": "org/model", "endpoint": "https://e", "error_code": "base_model_unreachable",
    "error_message": "text of a container", "users": 2, "probe_in_seconds": 60.0, "jobs": 7,
}  # fmt: skip
IMAGE = {**BREAKER, "kind": "image", "name": "", "error_code": "gpu_never_ready"}
NO_GPU = {"endpoint": "https://e", "problem": "RunPod has no free GPU of this kind now", "starting_seconds": None}


class TroubledQueue(FakeQueue):
    def __init__(self) -> None:
        super().__init__()
        self.breakers: list[Any] = []
        self.problems: list[Any] = []
        self.reasons: list[str] = []
        self.is_first = True

    async def health(self) -> QueueHealth:
        if self.failing:
            raise self.failing
        waiting = [{"job_id": "j", "wait_seconds": 1.0, "retry_count": 0, "waits_for": why} for why in self.reasons]
        return {
            **(await super().health()),
            "held": {"breakers": self.breakers, "endpoint_problems": self.problems},
            "waiting": waiting,
        }  # type: ignore[typeddict-item]

    async def claim_operator_notice(self, key: str, again_seconds: int) -> bool:
        return await super().claim_operator_notice(key, again_seconds) and self.is_first


@pytest.fixture
def queue() -> TroubledQueue:
    return TroubledQueue()


@pytest.fixture
def watch(queue: TroubledQueue) -> OperatorWatch:
    services = make_services(queue=queue, outbox=Notes())
    readiness = Readiness(services.clock, stuck_seconds=300)
    readiness.end("start")
    return OperatorWatch(services, readiness)


def posted(watch: OperatorWatch) -> list[OperatorNotice]:
    outbox = watch._services.outbox
    assert isinstance(outbox, Notes)
    return outbox.posted


def clock_of(watch: OperatorWatch) -> Clock:
    clock = watch._services.clock
    assert isinstance(clock, Clock)
    return clock


async def test_each_condition_of_the_queue_is_told_once(watch: OperatorWatch, queue: TroubledQueue) -> None:
    assert (await watch.run_once()).done == 0
    queue.breakers, queue.problems = [BREAKER, IMAGE], [NO_GPU]
    queue.reasons = ["its user's budget for a day: $5 a day", "a free worker slot"]
    assert [(await watch.run_once()).done for _ in range(3)] == [4, 0, 0]
    kinds = [notice.kind for notice in posted(watch)]
    assert kinds == ["jobs_held", "jobs_held", "no_gpu", "budget_reached"]
    told = " ".join(notice.title + notice.body for notice in posted(watch))
    assert "Held jobs: 7. For 2 users the base model org/model failed (base_model_unreachable)." in told
    assert "the endpoint's image failed" in told
    assert "Jobs that wait for its user's budget for a day: 1." in told
    # What a container wrote stays in the database.
    assert "text of a container" not in told


async def test_lasting_condition_is_told_again_after_hours(watch: OperatorWatch, queue: TroubledQueue) -> None:
    queue.problems = [NO_GPU]
    await watch.run_once()
    clock_of(watch).now += AGAIN_SECONDS
    await watch.run_once()
    assert len(posted(watch)) == 2


async def test_condition_that_another_worker_tells_is_not_told(watch: OperatorWatch, queue: TroubledQueue) -> None:
    queue.problems, queue.is_first = [NO_GPU], False
    await watch.run_once()
    await watch.run_once()
    assert posted(watch) == []
    # Nor is the database asked each minute.
    assert sum(call.startswith("claim_operator_notice") for call in queue.calls) == 1


async def test_worker_that_stays_unready_says_so_without_a_database(watch: OperatorWatch, queue: TroubledQueue) -> None:
    queue.failing = AWAY
    watch._readiness.end("renew", str(AWAY))
    for seconds in (0.0, UNREADY_SECONDS - 1, 1.0, 60.0):
        clock_of(watch).now += seconds
        with pytest.raises(ServiceUnavailableError):
            await watch.run_once()
    (notice,) = posted(watch)
    assert notice.kind == "worker_not_ready"
    assert notice.body.endswith("has not been ready for 5 minutes: Supabase's database is away")


async def test_short_outage_is_not_told(watch: OperatorWatch) -> None:
    for problem in ("away", None, "away"):
        watch._readiness.end("renew", problem)
        clock_of(watch).now += UNREADY_SECONDS - 1
        await watch.run_once()
    assert posted(watch) == []


def test_longest_names_give_keys_that_the_database_takes() -> None:
    long = {**BREAKER, "name": "n" * 400, "endpoint": "e" * 400}
    health: Any = {
        "held": {"breakers": [long], "endpoint_problems": [{**NO_GPU, "endpoint": "e" * 900}]},
        "waiting": [],
    }
    assert all(len(condition.key) <= 300 for condition in conditions_of_queue(health))


def test_duty_is_there_only_where_somebody_is_to_be_told() -> None:
    services = make_services()
    assert "notify" not in {duty.name for duty in Daemon(services).duties()}
    assert "notify" in {duty.name for duty in Daemon(replace(services, outbox=Notes())).duties()}
