"""What can go wrong between the worker and Vertex AI: lost answers, no quota, no machine, one that is taken away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from lora_worker.errors import LaunchInDoubtError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.base import ContainerLogs, Launcher, LaunchRef, LaunchState, Policy
from lora_worker.launchers.vertex.launcher import VertexLauncher
from tests.integration.launchers.vertex_scene import VertexScene

POLICY = Policy(execution_seconds=600, ttl_seconds=6000)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VertexScene]:
    with VertexScene.start(tmp_path_factory.mktemp("vertex")) as scene:
        yield scene


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


async def until(launcher: Launcher, launch_id: str, state: LaunchState) -> None:
    async with asyncio.timeout(120):
        while (await launcher.observe(LaunchRef(launcher.endpoint, launch_id))).state is not state:
            await asyncio.sleep(0.05)


async def test_job_whose_answer_was_lost_is_found_and_not_made_twice(
    scene: VertexScene, http: httpx.AsyncClient
) -> None:
    launcher, payload, before = scene.launcher(http), scene.payload("linger"), len(scene.server.jobs)
    scene.server.faults = ["lose_answer"]
    launch_id = await launcher.launch(payload, POLICY)
    assert await scene.launcher(http).launch(payload, POLICY) == launch_id, "another worker finds the same"
    assert len(scene.server.jobs) == before + 1
    assert await launcher.cancel(LaunchRef(launcher.endpoint, launch_id))
    await until(launcher, launch_id, LaunchState.CANCELLED)


async def test_lost_answer_of_a_job_that_no_list_shows_yet_is_in_doubt(
    scene: VertexScene, http: httpx.AsyncClient
) -> None:
    launcher, payload, before = scene.launcher(http), scene.payload("linger"), len(scene.server.jobs)
    # The first list is the look for an earlier launch of the run.
    scene.server.faults, scene.server.hidden_from_lists = ["lose_answer"], 2
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch(payload, POLICY)
    (owned,) = [one for one in await launcher.owned() if one.external_job_id.startswith(f"lora-{payload['run_id']}")]  # type: ignore[attr-defined]
    assert await launcher.launch(payload, POLICY) == owned.external_job_id
    assert len(scene.server.jobs) == before + 1
    assert await launcher.cancel(LaunchRef(launcher.endpoint, owned.external_job_id))
    await until(launcher, owned.external_job_id, LaunchState.CANCELLED)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("quota", ServiceUnavailableError, "custom_model_training_nvidia_l4_gpus is used up"),
        ("too_many", ServiceUnavailableError, "takes no more requests"),
        ("forbidden", ServiceRefusedError, "roles/aiplatform.user"),
        ("unavailable", LaunchInDoubtError, "503"),
    ],
)
async def test_refused_launch_makes_no_job(
    scene: VertexScene, http: httpx.AsyncClient, fault: str, kind: type[Exception], said: str
) -> None:
    before, scene.server.faults = len(scene.server.jobs), [fault]
    with pytest.raises(kind, match=said):
        await scene.launcher(http).launch(scene.payload("complete"), POLICY)
    assert len(scene.server.jobs) == before


async def test_refusal_that_repeats_the_request_is_told_without_it(scene: VertexScene, http: httpx.AsyncClient) -> None:
    scene.server.faults = ["echo"]
    with pytest.raises(ServiceRefusedError, match=r"^Vertex AI refused the job \(400\)$"):
        await scene.launcher(http).launch(scene.payload("complete"), POLICY)


async def test_region_without_a_machine_ends_the_launch_as_never_started(
    scene: VertexScene, http: httpx.AsyncClient
) -> None:
    launcher, payload, scene.server.faults = scene.launcher(http), scene.payload("complete"), ["stockout"]
    launch_id = await launcher.launch(payload, POLICY)
    await until(launcher, launch_id, LaunchState.TIMED_OUT)
    assert "no free machine" in str((await launcher.health()).problem)
    again = await launcher.launch(payload, POLICY)
    assert again != launch_id, "an ended job is no live launch of the run"
    await until(launcher, again, LaunchState.COMPLETED)


async def test_machine_that_is_taken_away_starts_the_same_launch_again(
    scene: VertexScene, http: httpx.AsyncClient
) -> None:
    launcher, payload = scene.launcher(http), scene.payload("linger")
    launch_id = await launcher.launch({**payload, "play": ["linger", "complete"]}, POLICY)
    async with asyncio.timeout(120):
        while not scene.starts_of(payload):
            await asyncio.sleep(0.02)
    scene.server.preempt(launch_id)
    await until(launcher, launch_id, LaunchState.COMPLETED)
    first, second = scene.starts_of(payload)
    assert first[0] != second[0], "another execution"
    volume = f"{scene.server.folder}/gcs/checkpoints/lora-trainer"
    assert first[1:] == second[1:] == [launch_id, volume]


async def test_log_of_a_container_is_read_from_cloud_logging(scene: VertexScene, http: httpx.AsyncClient) -> None:
    launcher, payload = scene.launcher(http), scene.payload("raise")
    launch_id = await launcher.launch(payload, POLICY)
    ref = LaunchRef(launcher.endpoint, launch_id)
    await until(launcher, launch_id, LaunchState.FAILED)
    assert isinstance(launcher, ContainerLogs)
    service, container = await launcher.read(ref, None, most_lines=10)
    assert (service.is_launchers, service.text, container.text) == (True, "Start 1.", "the machine plays fail")
    assert [line.text for line in await launcher.read(ref, None, most_lines=1)] == [container.text]
    followed = [line.text async for line in launcher.follow(ref, container.container, since=service.at)]
    assert followed == [container.text], "it ends when nothing more comes"
    stranger = LaunchRef(launcher.endpoint, f"{launch_id[:-8]}00000000")
    assert await launcher.read(stranger, container.container, most_lines=10) == []


async def test_worker_that_starts_anew_finds_its_launches(scene: VertexScene, http: httpx.AsyncClient) -> None:
    launch_id = await scene.launcher(http).launch(scene.payload("linger"), POLICY)
    anew = scene.launcher(http)
    await until(anew, launch_id, LaunchState.RUNNING)
    assert await anew.cancel(LaunchRef(f"{anew.endpoint}#g2-standard-16", launch_id))
    await until(anew, launch_id, LaunchState.CANCELLED)


async def test_other_projects_jobs_stay_untouched(scene: VertexScene, http: httpx.AsyncClient) -> None:
    launch_id = await scene.launcher(http).launch(scene.payload("linger"), POLICY)
    stranger = scene.launcher(http, mark="another000")
    assert isinstance(stranger, VertexLauncher)
    ref = LaunchRef(stranger.endpoint, launch_id)
    # Only a row of theirs knows the last digits.
    guessed = LaunchRef(stranger.endpoint, f"{launch_id[:-8]}00000000")
    assert (await stranger.observe(guessed)).state is LaunchState.MISSING
    assert await stranger.cancel(guessed)
    assert await stranger.owned() == []
    await until(scene.launcher(http), launch_id, LaunchState.RUNNING)
    assert await scene.launcher(http).cancel(ref)


async def test_key_file_is_found_by_googles_own_chain(
    scene: VertexScene, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lora_worker.launchers.vertex.tokens import GoogleTokens

    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(scene.server.key_file))
    tokens = GoogleTokens()
    assert await tokens.token() in scene.server.tokens
    assert await tokens.token() == await tokens.token()
    with scene.outage():
        tokens.forget(await tokens.token())
        with pytest.raises(ServiceUnavailableError, match="token service did not answer"):
            await tokens.token()
