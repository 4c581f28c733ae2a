"""What can go wrong between the worker and SageMaker: lost answers, quotas, no instance, one that is taken away."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.base import (
    ContainerLogs,
    EndpointState,
    LaunchRef,
    LaunchState,
    Observation,
    OwnerOfLaunches,
    Policy,
)
from lora_worker.launchers.sagemaker import launcher as sagemaker
from lora_worker.launchers.sagemaker.addresses import Address
from lora_worker.launchers.sagemaker.api import AwsApi
from lora_worker.launchers.sagemaker.launcher import SageMakerLauncher
from tests.integration.launchers.sagemaker_scene import SHAPE, SageMakerScene
from tests.sagemaker_server import ACCOUNT, REGION, SPOT_SHARE

POLICY = Policy(execution_seconds=600, ttl_seconds=6000)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SageMakerScene]:
    with SageMakerScene.start(tmp_path_factory.mktemp("sagemaker")) as scene:
        yield scene


@pytest.fixture
async def launcher(scene: SageMakerScene) -> AsyncIterator[SageMakerLauncher]:
    async with httpx.AsyncClient() as http:
        yield scene.launcher(http)


def ref(launcher: SageMakerLauncher, name: str) -> LaunchRef:
    return LaunchRef(launcher.endpoint, name)


async def until(launcher: SageMakerLauncher, name: str, state: LaunchState) -> Observation:
    async with asyncio.timeout(120):
        while (seen := await launcher.observe(ref(launcher, name))).state is not state:
            await asyncio.sleep(0.02)
    return seen


async def test_job_whose_answer_was_lost_is_found_by_its_name(
    scene: SageMakerScene, launcher: SageMakerLauncher
) -> None:
    payload = scene.payload("complete")
    scene.server.faults = ["lose_answer"]
    name = await launcher.launch(payload, POLICY)
    before = len(scene.server.jobs)
    assert await launcher.launch(payload, POLICY) == name, "what exists was accepted"
    assert len(scene.server.jobs) == before
    await until(launcher, name, LaunchState.COMPLETED)


@pytest.mark.parametrize("fault", ["drop", "internal"])
async def test_creation_without_a_job_is_in_doubt_and_not_repeated(
    scene: SageMakerScene, launcher: SageMakerLauncher, fault: str
) -> None:
    before = len(scene.server.jobs)
    scene.server.faults = [fault]
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch(scene.payload("complete"), POLICY)
    assert len(scene.server.jobs) == before


async def test_lost_creation_is_no_refusal_though_the_next_try_was(scene: SageMakerScene) -> None:
    launcher = SageMakerLauncher(Address(REGION, ACCOUNT), AwsApi(make=scene.server.client), SHAPE)
    before = len(scene.server.jobs)
    scene.server.faults = ["lose_answer", "quota"]
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch(scene.payload("complete"), POLICY)
    assert len(scene.server.jobs) == before + 1


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("throttle", ServiceUnavailableError, "AWS takes no more calls now"),
        ("quota", ServiceUnavailableError, "quota of instances is used up"),
        ("no_quota", ServiceRefusedError, "no quota for this instance"),
        ("forbidden", ServiceRefusedError, "lack the right to sagemaker:CreateTrainingJob"),
    ],
)
async def test_refused_creation_says_what_to_do(
    scene: SageMakerScene, launcher: SageMakerLauncher, fault: str, error: type[Exception], said: str
) -> None:
    scene.server.faults = [fault]
    with pytest.raises(error, match=said) as caught:
        await launcher.launch(scene.payload("complete"), POLICY)
    assert not isinstance(caught.value, LaunchRefusedError), "no user's job is to blame"


@pytest.mark.parametrize("fault", ["throttle", "internal", "forbidden", "drop"])
async def test_refused_look_or_cancel_ends_no_run(
    scene: SageMakerScene, launcher: SageMakerLauncher, fault: str
) -> None:
    name = await launcher.launch(scene.payload("complete"), POLICY)
    scene.server.faults = [fault]
    assert (await launcher.observe(ref(launcher, name))).state is LaunchState.UNKNOWN
    scene.server.faults = [fault]
    assert not await launcher.cancel(ref(launcher, name))
    await until(launcher, name, LaunchState.COMPLETED)


async def test_region_without_instances_lets_another_place_be_tried(
    scene: SageMakerScene, launcher: SageMakerLauncher
) -> None:
    scene.server.faults = ["no_capacity"]
    name = await launcher.launch(scene.payload("complete"), POLICY)
    seen = await launcher.observe(ref(launcher, name))
    assert (seen.state, seen.execution_seconds) == (LaunchState.TIMED_OUT, 0.0)
    problem = (await launcher.health()).problem
    assert problem is not None
    assert "no instance of this type" in problem


async def test_spot_instance_taken_away_is_the_same_launch_again(
    scene: SageMakerScene, launcher: SageMakerLauncher
) -> None:
    payload = scene.payload("linger") | {"play": ["linger", "complete"]}
    name = await launcher.launch(payload, POLICY)
    async with asyncio.timeout(60):
        while not scene.starts_of(payload):
            await launcher.observe(ref(launcher, name))
            await asyncio.sleep(0.02)
    scene.server.interrupt(name)
    seen = await until(launcher, name, LaunchState.COMPLETED)
    lines = scene.starts_of(payload)
    assert [line[1:] for line in lines] == [[name, str(scene.server.checkpoints_of(name))]] * 2
    assert lines[0][0] != lines[1][0], "another process"
    assert seen.execution_seconds is not None
    assert seen.billed_seconds is not None
    assert seen.billed_seconds <= max(seen.execution_seconds * SPOT_SHARE + 1, 1), "a spot instance costs less"


async def test_job_without_an_instance_waits_and_is_owned(scene: SageMakerScene, launcher: SageMakerLauncher) -> None:
    assert isinstance(launcher, OwnerOfLaunches)
    payloads = [scene.payload("linger"), scene.payload("linger")]
    working, waiting = [await launcher.launch(payload, POLICY) for payload in payloads]
    health = await launcher.health()
    assert (health.jobs_running, health.jobs_queued, health.state) == (1, 1, EndpointState.WELL)
    owned = await launcher.owned()
    assert [job.external_job_id for job in owned] == [working, waiting], "oldest first"
    assert [job.run_id.replace("-", "") for job in owned] == [payload["run_id"] for payload in payloads]
    assert all(job.age_seconds is not None and job.age_seconds >= 0 for job in owned)
    for name in (waiting, working):
        assert await launcher.cancel(ref(launcher, name))
        await until(launcher, name, LaunchState.CANCELLED)
    assert await launcher.owned() == []


async def test_endpoints_of_one_region_count_their_own_jobs_and_take_no_others(
    scene: SageMakerScene, launcher: SageMakerLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.server.faults = ["no_capacity"]
    await launcher.launch(scene.payload("complete"), POLICY)
    payload = scene.payload("linger")
    name = await launcher.launch(payload, POLICY)
    l4, h100 = (scene.at(each) for each in ("ml.g6.4xlarge", "ml.p5.4xlarge"))
    assert [(await at.health()).jobs_running for at in (launcher, l4, h100)] == [1, 1, 0]
    assert [(await at.health()).problem is None for at in (l4, h100)] == [False, True]
    assert await l4.launch(payload, POLICY) == name
    with pytest.raises(LaunchInDoubtError, match="on another type of instance"):
        await h100.launch(payload, POLICY)
    # Also where more jobs were made before than a look reads: AWS deletes none.
    monkeypatch.setattr(sagemaker, "_PAGE", 1)
    monkeypatch.setattr(sagemaker, "_MOST_OWNED", 1)
    assert [job.external_job_id for job in await launcher.owned()] == [name]
    assert (await l4.health()).jobs_running == 1
    assert await launcher.cancel(ref(launcher, name))
    await until(launcher, name, LaunchState.CANCELLED)


async def test_jobs_of_other_projects_and_accounts_are_left_alone(
    scene: SageMakerScene, launcher: SageMakerLauncher
) -> None:
    async with httpx.AsyncClient() as http:
        neighbour = scene.launcher(http, shape=dataclasses.replace(SHAPE, mark="abcdefabcd"))
    name = await neighbour.launch(scene.payload("linger"), POLICY)
    assert (await launcher.observe(ref(launcher, name))).state is LaunchState.UNKNOWN
    assert not await launcher.cancel(ref(launcher, name))
    assert name not in {job.external_job_id for job in await launcher.owned()}
    elsewhere = LaunchRef(f"sagemaker:{REGION}:999999999999", name)
    assert (await neighbour.observe(elsewhere)).state is LaunchState.UNKNOWN
    assert not await neighbour.cancel(elsewhere)
    assert scene.server.jobs[name].status == "InProgress"
    assert await neighbour.cancel(ref(neighbour, name))


async def test_credentials_of_another_account_lose_no_run(
    scene: SageMakerScene, launcher: SageMakerLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ref(launcher, f"lora-{'0' * 32}-{SHAPE.mark}")
    monkeypatch.setattr(scene.server, "account", "999999999999")
    assert (await launcher.observe(gone)).state is LaunchState.UNKNOWN
    monkeypatch.setattr(scene.server, "account", ACCOUNT)
    async with httpx.AsyncClient() as http:
        assert (await scene.launcher(http).observe(gone)).state is LaunchState.MISSING
    assert await launcher.cancel(gone)


async def test_log_of_the_last_container_is_read(scene: SageMakerScene, launcher: SageMakerLauncher) -> None:
    assert isinstance(launcher, ContainerLogs)
    name = await launcher.launch(scene.payload("complete"), POLICY)
    await until(launcher, name, LaunchState.COMPLETED)
    (scene.server.jobs[name].streams[0]).write_text("one\ntwo\nthree\n")
    assert [line.text for line in await launcher.read(ref(launcher, name), None, most_lines=2)] == ["two", "three"]
    followed: list[str] = []
    async for line in launcher.follow(ref(launcher, name), "algo-1-1", since=None):
        followed.append(line.text)
        if len(followed) == 3:
            break
    assert followed == ["one", "two", "three"]
    assert await launcher.read(ref(launcher, "somebody-elses-job"), None, most_lines=2) == []


async def test_strict_side_refuses_what_sagemaker_refuses(scene: SageMakerScene, launcher: SageMakerLauncher) -> None:
    """The stand-in would notice a request that SageMaker does not take."""
    wrong: list[dict[str, Any]] = [
        {"image": "i" * 256},
        {"role": "no role at all, but long enough"},
        {"s3_path": "file:///srv"},
        {"subnets": ("subnet-1",), "security_groups": ("a b",)},
    ]
    async with httpx.AsyncClient() as http:
        for change in wrong:
            other = scene.launcher(http, shape=dataclasses.replace(SHAPE, **change))
            with pytest.raises(ServiceRefusedError, match="ValidationException"):
                await other.launch(scene.payload("complete"), POLICY)
