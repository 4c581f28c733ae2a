"""The same promises for each launcher: what starts, ends, fails, is cancelled, lost or out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lora_worker.errors import LaunchRefusedError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.base import EndCause, Launcher, LaunchRef, LaunchState, Observation, Policy
from sandbox.gpu_server import LocalGpuServer
from sandbox.runpod import LocalRunPod
from tests.integration.launchers.runpod_pods_scene import RunPodPodsScene
from tests.integration.launchers.sagemaker_scene import SageMakerScene
from tests.integration.launchers.scenes import WRONG_KEY, GpuServerScene, RunPodScene, Scene
from tests.integration.launchers.skypilot_scene import SkyPilotScene
from tests.integration.launchers.vertex_scene import VertexScene

POLICY = Policy(execution_seconds=600, ttl_seconds=6000)
CLOUDS = {"vertex": VertexScene, "sagemaker": SageMakerScene, "skypilot": SkyPilotScene, "runpod-pods": RunPodPodsScene}
"""Those whose other side is started in the same way."""


@pytest.fixture(scope="module", params=["runpod", "gpu-server", *CLOUDS])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if request.param == "runpod":
        with LocalRunPod.start(
            handler_module="tests.handlers.errands", workers_max=1, ping_timeout_seconds=4
        ) as runpod:
            yield RunPodScene(runpod)
        return
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param in CLOUDS:
        with CLOUDS[request.param].start(folder) as cloud:
            yield cloud
        return
    with LocalGpuServer(folder, {}, trainer="tests.handlers.scripted_trainer") as server:
        yield GpuServerScene(server, folder)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def launcher(scene: Scene, http: httpx.AsyncClient) -> Launcher:
    return scene.launcher(http)


async def until(launcher: Launcher, ref: LaunchRef, fits: Callable[[Observation], bool]) -> Observation:
    async with asyncio.timeout(300):
        while not fits(seen := await launcher.observe(ref)):
            await asyncio.sleep(0.05)
    return seen


async def launched(launcher: Launcher, scene: Scene, act: str, policy: Policy = POLICY) -> LaunchRef:
    return LaunchRef(launcher.endpoint, await launcher.launch(scene.payload(act), policy))


async def test_launch_completes_with_what_its_trainer_returned(launcher: Launcher, scene: Scene) -> None:
    ref = await launched(launcher, scene, "complete")
    seen = await until(launcher, ref, lambda seen: scene.has_ended("complete", seen))
    if scene.without_output is None:
        assert seen.output["status"] == "completed"
    assert seen.execution_seconds is not None or seen.state is LaunchState.MISSING


async def test_trainer_that_fails_is_failed(launcher: Launcher, scene: Scene) -> None:
    seen = await until(launcher, await launched(launcher, scene, "raise"), lambda seen: seen.ended)
    assert (seen.state, seen.cause) == scene.ends["raise"]


async def test_running_launch_shows_progress_and_can_be_cancelled(launcher: Launcher, scene: Scene) -> None:
    ref = await launched(launcher, scene, "linger")
    begun = LaunchState.RUNNING if scene.without_output else None
    seen = await until(launcher, ref, lambda seen: seen.output is not None or seen.state is begun)
    assert seen.state is LaunchState.RUNNING
    assert (await launcher.health()).jobs_running == 1
    assert await launcher.cancel(ref)
    assert (await until(launcher, ref, lambda seen: seen.ended)).state is LaunchState.CANCELLED
    assert await launcher.cancel(ref)  # again does no harm


async def test_launch_that_waits_can_be_cancelled(launcher: Launcher, scene: Scene) -> None:
    first, second = await launched(launcher, scene, "linger"), await launched(launcher, scene, "linger")
    await until(launcher, first, lambda seen: seen.state is LaunchState.RUNNING)
    assert (await launcher.observe(second)).state is LaunchState.QUEUED
    for ref in (second, first):
        assert await launcher.cancel(ref)
        await until(launcher, ref, lambda seen: seen.state is LaunchState.CANCELLED)


async def test_launch_over_its_time_is_ended(launcher: Launcher, scene: Scene) -> None:
    ref = await launched(launcher, scene, "linger", Policy(execution_seconds=5, ttl_seconds=6000))
    seen = await until(launcher, ref, lambda seen: seen.ended)
    assert (seen.state, seen.cause) == (LaunchState.FAILED, EndCause.OVER_TIME)


async def test_launch_whose_machine_is_lost_each_time_fails(launcher: Launcher, scene: Scene) -> None:
    seen = await until(launcher, await launched(launcher, scene, "die"), lambda seen: seen.ended)
    assert (seen.state, seen.cause) == (LaunchState.FAILED, EndCause.LOST)


@pytest.mark.parametrize("name", ["never-there", "../health", "", "x" * 300])
async def test_unknown_launch_is_missing_and_its_cancel_done(launcher: Launcher, name: str) -> None:
    ref = LaunchRef(launcher.endpoint, name)
    assert (await launcher.observe(ref)).state is LaunchState.MISSING
    assert await launcher.cancel(ref)


async def test_wrong_key_ends_no_run(scene: Scene, http: httpx.AsyncClient, launcher: Launcher) -> None:
    ref = await launched(launcher, scene, "complete")
    stranger = scene.launcher(http, key=WRONG_KEY)
    assert (await stranger.observe(ref)).state is LaunchState.UNKNOWN
    assert not await stranger.cancel(ref)
    assert not (await stranger.health()).reachable
    with pytest.raises(ServiceRefusedError) as caught:
        await stranger.launch(scene.payload("complete"), POLICY)
    assert not isinstance(caught.value, LaunchRefusedError)
    await until(launcher, ref, lambda seen: scene.has_ended("complete", seen))


async def test_what_nobody_answers_ends_no_run(scene: Scene, launcher: Launcher) -> None:
    ref = await launched(launcher, scene, "complete")
    await until(launcher, ref, lambda seen: scene.has_ended("complete", seen))
    with scene.outage():
        assert (await launcher.observe(ref)).state is LaunchState.UNKNOWN
        assert not await launcher.cancel(ref)
        assert not (await launcher.health()).reachable
        with pytest.raises(ServiceUnavailableError):
            await launcher.launch(scene.payload("complete"), POLICY)
    assert scene.has_ended("complete", await launcher.observe(ref))


async def test_key_is_not_sent_where_a_row_points(scene: Scene) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"called {request.url.host}")

    async with httpx.AsyncClient(transport=httpx.MockTransport(fail)) as http:
        launcher = scene.launcher(http)
        ref = LaunchRef("https://elsewhere.example.com/v2/endpoint", "job")
        assert (await launcher.observe(ref)).state is LaunchState.UNKNOWN
        assert not await launcher.cancel(ref)
        assert not (await launcher.health(ref.endpoint)).reachable


async def test_request_that_is_too_large_is_refused_before_it_is_sent(launcher: Launcher) -> None:
    with pytest.raises(LaunchRefusedError):
        await launcher.launch({"run_id": "r", "text": "x" * 10_000_001}, POLICY)
