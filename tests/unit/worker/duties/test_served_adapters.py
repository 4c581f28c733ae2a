"""One errand at a time does what is due to served adapters; it is confirmed, repeated, and never sent for nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from lora_contract.errands import ErrandError, ErrandResult
from lora_worker.database.answers import ServingErrand
from lora_worker.duties.served_adapters import ServedAdapters
from lora_worker.errors import (
    LaunchInDoubtError,
    LaunchRefusedError,
    ServiceRefusedError,
    ServiceUnavailableError,
)
from lora_worker.launchers.base import LaunchRef, LaunchState, Observation, Policy
from tests.scripted import FakeLauncher, FakeQueue, make_services

RUN = str(UUID(int=1))
ANSWER = ErrandResult(kind="serving", removed=[RUN], aliases=["bot:live"]).as_output()


class ServingQueue(FakeQueue):
    """A database with one errand, until it is ended."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        request = {"remove": [RUN], "aliases": {"bot:live": "adapter-0a1b2c3d"}}
        self.errand: ServingErrand | None = {
            "id": uuid4(), "lease_token": uuid4(), "endpoint": "https://there", "external_job_id": None,
            "age_seconds": 5.0, "request": request,
        }  # fmt: skip
        self.errand.update(changes)  # type: ignore[typeddict-item]
        self.ended: list[dict[str, Any]] = []
        self.answer: int | None = 1

    async def claim_serving_errand(self, *, launcher: str, endpoint: str) -> ServingErrand | None:
        assert (launcher, endpoint) == (FakeLauncher.name, FakeLauncher.endpoint)
        return self.errand

    async def record_serving_errand(
        self, errand_id: UUID, lease_token: UUID, *, endpoint: str, external_job_id: str
    ) -> bool:
        assert self.errand is not None
        self.errand["external_job_id"], self.errand["endpoint"] = external_job_id, endpoint
        return True

    async def end_serving_errand(self, errand_id: UUID, lease_token: UUID, **outcome: Any) -> int | None:
        self.ended.append(outcome)
        self.errand = None
        return self.answer


class Endpoint(FakeLauncher):
    """An endpoint that takes errands, and answers what the test sets."""

    def __init__(self, seen: Observation | None = None, refusal: Exception | None = None) -> None:
        super().__init__()
        self.launched: list[dict[str, Any]] = []
        self.cancelled: list[LaunchRef] = []
        self.seen = seen or Observation(LaunchState.RUNNING)
        self.refusal = refusal

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        if self.refusal:
            raise self.refusal
        assert policy.execution_seconds < policy.ttl_seconds
        self.launched.append(payload)
        return "errand-1"

    async def observe(self, launch: LaunchRef) -> Observation:
        assert launch.external_job_id == "errand-1"
        return self.seen

    async def cancel(self, launch: LaunchRef) -> bool:
        self.cancelled.append(launch)
        return True


def duty(queue: ServingQueue, launcher: Endpoint) -> ServedAdapters:
    return ServedAdapters(make_services(queue=queue, launcher=launcher))


def ended(output: Any, state: LaunchState = LaunchState.COMPLETED) -> Observation:
    return Observation(state, output=output, execution_seconds=3.5)


async def test_nothing_is_launched_while_nothing_is_due() -> None:
    queue, launcher = ServingQueue(), Endpoint()
    queue.errand = None
    assert (await duty(queue, launcher).run_once()).done == 0
    assert launcher.launched == []


async def test_launcher_without_errands_is_sent_none_for_adapters() -> None:
    queue, launcher = ServingQueue(), Endpoint()
    launcher.takes_errands = False
    assert (await duty(queue, launcher).run_once()).done == 0
    assert (launcher.launched, queue.ended) == ([], [])


async def test_errand_is_launched_once_watched_and_confirmed() -> None:
    queue, launcher = ServingQueue(), Endpoint()
    worker = duty(queue, launcher)
    await worker.run_once()
    await worker.run_once()
    [payload] = launcher.launched
    assert payload == {
        "protocol": 1, "kind": "serving", "remove": [RUN], "aliases": {"bot:live": "adapter-0a1b2c3d"},
    }  # fmt: skip
    assert queue.ended == []
    launcher.seen = ended(ANSWER)
    result = await worker.run_once()
    assert (result.done, result.put_off) == (1, ())
    assert queue.ended == [
        {
            "removed": [RUN], "aliases": ["bot:live"], "problem": None, "gpu_seconds": 3.5, "replace_workers": False,
            "no_volume": False,
        }
    ]  # fmt: skip


async def test_what_could_not_be_done_is_told_and_the_rest_confirmed() -> None:
    result = ErrandResult(kind="serving", removed=[RUN], problems=["bot:live: No adapter is served."])
    queue = ServingQueue(external_job_id="errand-1")
    put_off = (await duty(queue, Endpoint(ended(result.as_output()))).run_once()).put_off
    assert put_off == ("bot:live: No adapter is served.",)
    assert queue.ended[0]["removed"] == [RUN]
    assert queue.ended[0]["problem"] == "bot:live: No adapter is served."


ERROR = ErrandError(code="volume_missing", message="No volume is mounted.", remedy="Attach it.")


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        (
            ended(ErrandResult(kind="serving", error=ERROR).as_output(), LaunchState.FAILED),
            "No volume is mounted. Attach",
        ),
        (ended(ErrandResult(kind="prefetch", error=ERROR).as_output(), LaunchState.FAILED), "does its image hold"),
        (ended({"status": "failed", "run_id": "None"}), "does its image hold"),
        (ended(None, LaunchState.CANCELLED), "does its image hold"),
        (ended("x" * 10_000), "does its image hold"),
        (Observation(LaunchState.MISSING, reason="RunPod knows no such job"), "RunPod knows no such job"),
    ],
)
async def test_errand_without_an_answer_confirms_nothing(seen: Observation, problem: str) -> None:
    queue = ServingQueue(external_job_id="errand-1")
    result = await duty(queue, Endpoint(seen)).run_once()
    assert problem in result.put_off[0]
    assert queue.ended[0]["removed"] == []
    assert problem in queue.ended[0]["problem"]


@pytest.mark.parametrize(("code", "no_volume"), [("volume_missing", True), ("internal", False)])
async def test_missing_volume_is_told_to_the_database(code: str, no_volume: bool) -> None:
    queue, error = ServingQueue(external_job_id="errand-1"), ERROR.model_copy(update={"code": code})
    answer = ErrandResult(kind="serving", error=error).as_output()
    await duty(queue, Endpoint(ended(answer, LaunchState.FAILED))).run_once()
    assert queue.ended[0]["no_volume"] is no_volume


async def test_status_that_can_not_be_read_ends_nothing_until_it_is_overdue() -> None:
    queue, launcher = ServingQueue(external_job_id="errand-1"), Endpoint(Observation(LaunchState.UNKNOWN))
    worker = duty(queue, launcher)
    assert (await worker.run_once()).put_off
    assert queue.ended == []
    assert queue.errand is not None
    queue.errand["age_seconds"] = 6000.0
    await worker.run_once()
    assert launcher.cancelled == [LaunchRef("https://there", "errand-1")]
    assert queue.ended[0]["problem"] == "the errand did not end in its time"


@pytest.mark.parametrize(
    "refusal",
    [
        LaunchRefusedError("the cloud", "no such request", status=400),
        ServiceRefusedError("the cloud", "the key is wrong", status=401),
    ],
)
async def test_refused_errand_is_asked_for_again_later(refusal: Exception) -> None:
    queue = ServingQueue()
    assert (await duty(queue, Endpoint(refusal=refusal)).run_once()).put_off
    assert queue.ended[0]["removed"] == []


async def test_launch_of_unknown_outcome_is_asked_for_again_later() -> None:
    """Sent again each round, it would start a machine every twenty seconds."""
    queue, launcher = ServingQueue(), Endpoint(refusal=LaunchInDoubtError("the cloud", "no answer"))
    assert "no answer" in (await duty(queue, launcher).run_once()).put_off[0]
    assert queue.ended[0]["removed"] == []
    assert "no answer" in queue.ended[0]["problem"]


async def test_launch_that_can_not_be_written_down_is_not_sent_each_round() -> None:
    class Forgetful(ServingQueue):
        async def record_serving_errand(self, *_: Any, **__: Any) -> bool:
            raise ServiceUnavailableError("the database", "away")

    queue, launcher = Forgetful(), Endpoint()
    worker = duty(queue, launcher)
    assert "away" in (await worker.run_once()).put_off[0]
    await worker.run_once()
    assert len(launcher.launched) == len(queue.ended) == 1


async def test_unavailable_launcher_fails_the_round_and_keeps_the_errand() -> None:
    queue = ServingQueue()
    with pytest.raises(ServiceUnavailableError):
        await duty(queue, Endpoint(refusal=ServiceUnavailableError("the cloud", "away"))).run_once()
    assert queue.errand is not None


async def test_name_that_no_errand_takes_is_a_problem_and_no_crash() -> None:
    queue = ServingQueue(request={"remove": [RUN], "aliases": {"../x": "adapter-1"}})
    assert (await duty(queue, Endpoint()).run_once()).put_off
    assert queue.ended[0]["problem"] == "the rows hold a name that no errand takes"


async def test_worker_that_lost_the_errand_tells_nothing_of_its_end() -> None:
    queue = ServingQueue(external_job_id="errand-1")
    queue.answer = None
    result = await duty(queue, Endpoint(ended(ANSWER))).run_once()
    assert (result.done, result.put_off) == (0, ())
