"""What can go wrong between the worker and RunPod's pods: lost answers, no GPU, stopped pods, and those of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.base import ContainerLogs, EndCause, LaunchRef, LaunchState, Observation, Policy
from lora_worker.launchers.runpod_pods.launcher import RunPodPodsLauncher
from tests.integration.launchers.runpod_pods_scene import MARK, RunPodPodsScene

POLICY = Policy(execution_seconds=6000, ttl_seconds=60_000)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPodPodsScene]:
    with RunPodPodsScene.start(tmp_path_factory.mktemp("pods")) as scene:
        yield scene


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
async def scene(account: RunPodPodsScene, http: httpx.AsyncClient) -> AsyncIterator[RunPodPodsScene]:
    """The account, without pods."""
    yield account
    account.runpod.faults.clear()
    account.runpod.set_stock("AMPERE_80", "HIGH")
    headers = {"authorization": f"Bearer {account.runpod.api_key}"}
    for pod in account.runpod.pods():
        (await http.delete(f"{account.runpod.rest_url}/pods/{pod['id']}", headers=headers)).raise_for_status()


@pytest.fixture
def launcher(scene: RunPodPodsScene, http: httpx.AsyncClient) -> RunPodPodsLauncher:
    return scene.launcher(http)


async def until(launcher: RunPodPodsLauncher, launch_id: str, state: LaunchState) -> Observation:
    async with asyncio.timeout(120):
        while (seen := await launcher.observe(LaunchRef(launcher.endpoint, launch_id))).state is not state:
            await asyncio.sleep(0.05)
    return seen


@pytest.mark.parametrize("fault", ["drop_answer", "respond_after"])
async def test_pod_whose_answer_was_lost_is_found_and_not_made_twice(
    scene: RunPodPodsScene, launcher: RunPodPodsLauncher, http: httpx.AsyncClient, fault: str
) -> None:
    scene.runpod.faults.add("createPod", fault)  # type: ignore[arg-type]
    payload = scene.payload("linger")
    launch_id = await launcher.launch(payload, POLICY)
    assert await scene.launcher(http).launch(payload, POLICY) == launch_id, "another worker finds the same"
    assert [pod["name"] for pod in scene.runpod.pods()] == [f"{launch_id}-{MARK}"]


async def test_pod_that_cannot_be_looked_for_is_in_doubt_and_found_later(
    scene: RunPodPodsScene, launcher: RunPodPodsLauncher
) -> None:
    scene.runpod.faults.add("createPod", "drop_answer")
    # The first list is the look for an earlier launch of the run.
    scene.runpod.faults.add("listPods", "respond", status=502, body="html", skip=1)
    payload = scene.payload("linger")
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch(payload, POLICY)
    (owned,) = await launcher.owned()
    assert owned.run_id.replace("-", "") == payload["run_id"]
    assert await launcher.launch(payload, POLICY) == owned.external_job_id


async def test_without_a_look_for_earlier_pods_none_is_made(
    scene: RunPodPodsScene, launcher: RunPodPodsLauncher
) -> None:
    scene.runpod.faults.add("listPods", "respond", status=500)
    with pytest.raises(ServiceUnavailableError):
        await launcher.launch(scene.payload("linger"), POLICY)
    assert scene.runpod.pods() == []


async def test_next_gpu_of_a_kind_is_taken_and_none_is_a_sentence(
    scene: RunPodPodsScene, launcher: RunPodPodsLauncher
) -> None:
    scene.runpod.set_stock("NVIDIA A100-SXM4-80GB", "NONE")
    await launcher.launch(scene.payload("linger"), POLICY)
    assert [pod["gpu"] for pod in scene.runpod.pods()] == [{"id": "NVIDIA A100 80GB PCIe", "count": 1}]
    scene.runpod.set_stock("AMPERE_80", "NONE")
    with pytest.raises(ServiceUnavailableError, match=r"RunPod has no pod with 1 × NVIDIA A100-SXM4-80GB or the like"):
        await launcher.launch(scene.payload("linger"), POLICY)


async def test_request_that_all_gpus_refuse_is_not_told_as_a_want_of_gpus(
    scene: RunPodPodsScene, http: httpx.AsyncClient
) -> None:
    wrong = scene.launcher(http, registry_id="gone")
    with pytest.raises(ServiceRefusedError, match="no such registry") as caught:
        await wrong.launch(scene.payload("linger"), POLICY)
    assert not isinstance(caught.value, LaunchRefusedError)
    with pytest.raises(LaunchRefusedError, match="no pods with the GPU TPU"):
        await wrong.launch({**scene.payload("linger"), "gpu_config": {"type": "TPU"}}, POLICY)


async def test_stopped_pod_is_terminated_and_its_run_lost(scene: RunPodPodsScene, launcher: RunPodPodsLauncher) -> None:
    launch_id = await launcher.launch(scene.payload("linger"), POLICY)
    await until(launcher, launch_id, LaunchState.RUNNING)
    scene.runpod.faults.add("deletePod", "respond", status=500)
    scene.runpod.stop_pod(scene.runpod.pods()[0]["id"])
    unconfirmed = await launcher.observe(LaunchRef(launcher.endpoint, launch_id))
    assert (unconfirmed.state, unconfirmed.reason) == (
        LaunchState.UNKNOWN,
        "the pod has stopped (EXITED), and RunPod still has its pod",
    )
    seen = await until(launcher, launch_id, LaunchState.FAILED)
    assert seen.cause is EndCause.LOST
    assert scene.runpod.pods() == [], "its disk would cost on"


async def test_container_that_died_once_goes_on_in_its_pod(
    scene: RunPodPodsScene, launcher: RunPodPodsLauncher
) -> None:
    payload = scene.payload("linger")
    launch_id = await launcher.launch(payload, POLICY)
    await until(launcher, launch_id, LaunchState.RUNNING)
    scene.runpod.kill_container(scene.runpod.pods()[0]["id"])
    async with asyncio.timeout(60):
        while scene.runpod.ledger.pods[-1].starts < 2:
            await asyncio.sleep(0.05)
            assert (await launcher.observe(LaunchRef(launcher.endpoint, launch_id))).state is LaunchState.RUNNING


@pytest.mark.parametrize("look", ["owned", "observe", "health"])
async def test_pod_that_nobody_polls_is_ended_by_any_look_when_its_time_is_over(
    scene: RunPodPodsScene, http: httpx.AsyncClient, look: str
) -> None:
    await scene.launcher(http).launch(scene.payload("linger"), Policy(execution_seconds=600, ttl_seconds=1000))
    life = scene.runpod.ledger.pods[-1]
    # Another worker: the one that made the pod was killed.
    watching = scene.launcher(http)
    scene.runpod.advance(990)
    assert await watching.owned()
    scene.runpod.advance(20)
    if look == "observe":
        await watching.observe(LaunchRef(watching.endpoint, f"lora-{'0' * 32}-00000000"))
    else:
        await getattr(watching, look)()
    assert life.ended_at is not None
    assert life.ended_at - life.created_at < 1060


async def test_pods_of_others_are_neither_listed_nor_ended(
    scene: RunPodPodsScene, launcher: RunPodPodsLauncher, http: httpx.AsyncClient
) -> None:
    other = scene.launcher(http, mark="9876543210")
    launch_id = await other.launch(scene.payload("linger"), Policy(execution_seconds=60, ttl_seconds=60))
    scene.runpod.advance(10_000)
    # Only a row of theirs knows the last digits.
    ref = LaunchRef(launcher.endpoint, f"{launch_id[:-8]}00000000")
    assert await launcher.owned() == []
    assert (await launcher.observe(ref)).state is LaunchState.MISSING
    assert await launcher.cancel(ref)
    assert await launcher.read(ref, None, most_lines=5) == []
    assert len(scene.runpod.pods()) == 1


async def test_cancel_counts_once_no_look_finds_the_pod(scene: RunPodPodsScene, launcher: RunPodPodsLauncher) -> None:
    launch_id = await launcher.launch(scene.payload("linger"), POLICY)
    ref = LaunchRef(launcher.endpoint, launch_id)
    await until(launcher, launch_id, LaunchState.RUNNING)
    for fault in ("respond", "disconnect"):
        scene.runpod.faults.add("deletePod", fault, status=503)  # type: ignore[arg-type]
        assert not await launcher.cancel(ref)
        assert (await launcher.observe(ref)).state is LaunchState.RUNNING
    scene.runpod.faults.add("deletePod", "drop_answer")
    assert not await launcher.cancel(ref), "carried out, and the answer lost"
    assert (await launcher.observe(ref)).state is LaunchState.MISSING
    assert await launcher.cancel(ref)


async def test_lines_of_a_pod_are_read_by_its_launch(scene: RunPodPodsScene, launcher: RunPodPodsLauncher) -> None:
    assert isinstance(launcher, ContainerLogs)
    launch_id = await launcher.launch(scene.payload("linger"), POLICY)
    ref = LaunchRef(launcher.endpoint, launch_id)
    pod_id = (await until(launcher, launch_id, LaunchState.RUNNING)).container
    assert pod_id is not None
    async with asyncio.timeout(60):
        async for line in launcher.follow(ref, pod_id, since=None):
            if line.text == "the machine plays linger":
                break
    assert (line.container, line.is_launchers) == (pod_id, False)
    assert await launcher.read(ref, "anotherspod", most_lines=5) == []
