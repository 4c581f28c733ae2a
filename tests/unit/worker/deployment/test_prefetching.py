"""A prefetch is one job: what it tells meanwhile, how it ends, and that nothing is billed unseen after Ctrl-C."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lora_worker.deployment.prefetching import Sight, prefetch
from lora_worker.errors import DeploymentError, LaunchInDoubtError, ServiceRefusedError
from lora_worker.launchers.base import EndCause, EndpointHealth, LaunchRef, LaunchState, Observation, Policy
from tests.scripted import Clock, FakeLauncher

MODELS = ["org/model", "org/other@main"]
PRESENT = {"kind": "prefetch", "models": [{"model": "org/model", "bytes": 5, "status": "present"}]}
QUEUED, RUNNING = Observation(LaunchState.QUEUED), Observation(LaunchState.RUNNING)


def running(**progress: Any) -> Observation:
    return Observation(LaunchState.RUNNING, output={"kind": "prefetch", **progress})


def ended(output: Any, state: LaunchState = LaunchState.COMPLETED) -> Observation:
    return Observation(state, output=output, cause=EndCause.RAISED)


class Scripted(FakeLauncher):
    """Answers looks in turn; the last answer stays."""

    def __init__(self, *observations: Observation) -> None:
        super().__init__()
        self.observations = list(observations)
        self.launched: list[tuple[dict[str, Any], Policy]] = []
        self.cancelled: list[str] = []
        self.clock = Clock()
        self.fault: Exception | None = None

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        self.launched.append((payload, policy))
        if self.fault:
            raise self.fault
        return "job-1"

    async def observe(self, launch: LaunchRef) -> Observation:
        return self.observations.pop(0) if len(self.observations) > 1 else self.observations[0]

    async def cancel(self, launch: LaunchRef) -> bool:
        self.cancelled.append(launch.external_job_id)
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(True, 0, 1, "RunPod has no free GPU of this kind now")

    async def sleep(self, seconds: float) -> None:
        self.clock.now += seconds
        await asyncio.sleep(0)


async def run(launcher: Scripted, seen: list[Sight] | None = None) -> Any:
    sights = [] if seen is None else seen
    return await prefetch(
        launcher, MODELS, execution_seconds=600, seen=sights.append, clock=launcher.clock, sleep=launcher.sleep
    )


async def test_one_job_is_sent_and_its_progress_told() -> None:
    progress = running(model="org/model", done_bytes=5, total_bytes=10)
    launcher = Scripted(QUEUED, RUNNING, progress, ended(PRESENT))
    sights: list[Sight] = []
    result = await run(launcher, sights)
    assert [(model.model, model.status) for model in result.models] == [("org/model", "present")]
    ((payload, policy),) = launcher.launched
    assert payload == {"protocol": 1, "kind": "prefetch", "models": MODELS}
    assert policy == Policy(600, 4200)
    assert [sight.state for sight in sights] == ["queued", "running", "running"]
    assert sights[2].progress is not None
    assert (sights[2].progress.done_bytes, sights[1].progress) == (5, None)


async def test_a_long_wait_comes_with_its_reason() -> None:
    sights: list[Sight] = []
    await run(Scripted(*[QUEUED] * 20, ended(PRESENT)), sights)
    assert sights[0].problem is None
    assert sights[-1].problem == "RunPod has no free GPU of this kind now"


async def test_a_failure_says_what_was_finished_before() -> None:
    failure = {"code": "disk_full", "message": "The volume is full.", "remedy": "Make it larger."}
    launcher = Scripted(ended({**PRESENT, "failure": failure, "error": "text"}, LaunchState.FAILED))
    result = await run(launcher)
    assert (len(result.models), result.error.sentence()) == (1, "The volume is full. Make it larger.")


@pytest.mark.parametrize(
    ("observation", "sentence"),
    [
        (ended({"status": "something"}), "does its image hold this release of the trainer"),
        (ended(None), "does its image hold this release of the trainer"),
        (ended({"kind": "fitness", "checks": []}), "does its image hold this release"),
        (
            ended(None, LaunchState.FAILED),
            "ended without an answer (raised): the container's log says why (see the cloud's console)",
        ),
        (ended(None, LaunchState.TIMED_OUT), "ended without an answer"),
        (ended(None, LaunchState.CANCELLED), "was cancelled; the same command again goes on"),
        (Observation(LaunchState.MISSING), "The cloud tells no more of the prefetch (missing)"),
        (Observation(LaunchState.UNKNOWN, reason="HTTP 502"), "The cloud tells no more of the prefetch (HTTP 502)"),
    ],
)
async def test_an_end_without_an_answer_is_one_sentence(observation: Observation, sentence: str) -> None:
    with pytest.raises(DeploymentError) as caught:
        await run(Scripted(QUEUED, observation))
    assert sentence in str(caught.value)


async def test_a_short_outage_of_runpod_does_not_end_the_waiting() -> None:
    launcher = Scripted(RUNNING, *[Observation(LaunchState.UNKNOWN)] * 100, RUNNING, ended(PRESENT))
    assert (await run(launcher)).error is None


async def test_ctrl_c_cancels_the_job() -> None:
    launcher = Scripted(RUNNING)
    began = asyncio.Event()
    work = asyncio.create_task(
        prefetch(launcher, MODELS, execution_seconds=600, seen=lambda _: began.set(), sleep=launcher.sleep)
    )
    await began.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert launcher.cancelled == ["job-1"]


async def test_a_job_that_was_not_taken_is_one_sentence() -> None:
    launcher = Scripted(RUNNING)
    launcher.fault = ServiceRefusedError("RunPod", "RunPod refused the API key (401)", status=401)
    with pytest.raises(ServiceRefusedError):
        await run(launcher)
    launcher.fault = LaunchInDoubtError("RunPod", "RunPod did not answer the launch")
    with pytest.raises(DeploymentError, match="it may run all the same"):
        await run(launcher)
