"""SkyPilot's jobs survive lost answers and lost machines, and its SDK sees nothing that is not its business."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from lora_contract.machine_request import LAUNCH_ID_VARIABLE, unpack_request
from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.base import LaunchRef, LaunchState, Observation, OwnedLaunch, Policy
from lora_worker.launchers.skypilot.client import Problem, SkyClient, SkyError
from lora_worker.launchers.skypilot.launcher import SkyPilotLauncher
from tests.integration.launchers.skypilot_scene import MARK, SkyPilotScene

POLICY = Policy(execution_seconds=600, ttl_seconds=6000)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SkyPilotScene]:
    with SkyPilotScene.start(tmp_path_factory.mktemp("skypilot")) as scene:
        yield scene


@pytest.fixture(scope="module")
def launcher(scene: SkyPilotScene) -> SkyPilotLauncher:
    return scene.launcher()


def at(launcher: SkyPilotLauncher, name: str) -> LaunchRef:
    return LaunchRef(launcher.endpoint, name)


async def until(launcher: SkyPilotLauncher, name: str, fits: Callable[[Observation], bool]) -> Observation:
    async with asyncio.timeout(300):
        while not fits(seen := await launcher.observe(at(launcher, name))):
            await asyncio.sleep(0.02)
    return seen


async def ended(launcher: SkyPilotLauncher, name: str) -> Observation:
    assert await launcher.cancel(at(launcher, name))
    return await until(launcher, name, lambda seen: seen.ended)


async def test_launch_with_a_lost_answer_is_found_and_not_repeated(
    scene: SkyPilotScene, launcher: SkyPilotLauncher
) -> None:
    payload = scene.payload("linger")
    scene.server.faults.append("lose_answer")
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch(payload, POLICY)
    name = await launcher.launch(payload, POLICY)
    assert [job.name for job in scene.server.jobs.values() if UUID(payload["run_id"]).hex in job.name] == [name]
    assert await launcher.owned() == [OwnedLaunch(name, str(UUID(payload["run_id"])), pytest.approx(0, abs=60))]
    await ended(launcher, name)
    assert await launcher.owned() == []
    assert await launcher.launch({**payload, "play": ["complete"]}, POLICY) != name  # what has ended is no launch


async def test_submission_that_broke_off_is_removed_and_made_again(
    scene: SkyPilotScene, launcher: SkyPilotLauncher
) -> None:
    payload = scene.payload("complete")
    scene.server.faults.append("break_off")
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch(payload, POLICY)
    name = await launcher.launch(payload, POLICY)
    assert (await until(launcher, name, lambda seen: seen.ended)).state is LaunchState.COMPLETED
    broken, made = (job for job in scene.server.jobs.values() if UUID(payload["run_id"]).hex in job.name)
    assert (broken.status, made.name) == ("CANCELLED", name)


async def test_job_whose_machine_is_taken_away_goes_on_as_the_same_launch(
    scene: SkyPilotScene, launcher: SkyPilotLauncher
) -> None:
    payload = {**scene.payload("linger"), "play": ["linger", "complete"]}
    name = await launcher.launch(payload, POLICY)
    async with asyncio.timeout(300):
        while not scene.starts_of(payload):
            await asyncio.sleep(0.02)
    scene.server.preempt(name)
    states = set()
    await until(launcher, name, lambda seen: states.add(seen.state) or seen.ended)
    assert states <= {LaunchState.RUNNING, LaunchState.QUEUED, LaunchState.COMPLETED}
    assert [words[1] for words in scene.starts_of(payload)] == [name, name]


async def test_task_brings_the_request_as_a_secret_and_the_volume(scene: SkyPilotScene) -> None:
    launcher = scene.launcher(
        url=f"{scene.server.url}#H100", volume="s3://bucket", infra=("aws/us-east-1", "k8s"), is_spot=True
    )
    payload = {**scene.payload("complete"), "channel": {"token": "run-token"}}
    name = await launcher.launch(payload, POLICY)
    task = scene.server.named(name).task
    assert unpack_request(task["secrets"]) == payload
    # The real SDK adds the server's address.
    assert task["envs"].items() >= {LAUNCH_ID_VARIABLE: name, "LORA_TRAINER_VOLUME": "/lora-volume"}.items()
    assert "file_mounts" in task
    # Of Kubernetes both a spot node and an ordinary one.
    assert len(task["resources"]["any_of"]) == 3
    assert "H100" in repr(task["resources"])
    await ended(launcher, name)
    with pytest.raises(ServiceRefusedError, match="specific files"):
        await scene.launcher(url=f"{scene.server.url}#L4", volume="s3://bucket/lora").launch(payload, POLICY)


async def test_refused_task_is_the_operators_and_names_the_settings(
    scene: SkyPilotScene, launcher: SkyPilotLauncher
) -> None:
    scene.server.faults.append("refuse")
    with pytest.raises(ServiceRefusedError, match=r"LORA_WORKER_SKYPILOT_IMAGE.*Volume lora not found") as caught:
        await launcher.launch(scene.payload("complete"), POLICY)
    assert not isinstance(caught.value, LaunchRefusedError)


async def test_job_without_a_machine_never_started_and_the_server_says_so(
    scene: SkyPilotScene, launcher: SkyPilotLauncher
) -> None:
    scene.server.faults.append("no_resource")
    name = await launcher.launch(scene.payload("complete"), POLICY)
    assert (await launcher.observe(at(launcher, name))).state is LaunchState.TIMED_OUT
    health = await launcher.health()
    assert (health.reachable, "found no machine" in (health.problem or "")) == (True, True)


async def test_job_that_waits_longer_than_its_launch_may_is_ended(scene: SkyPilotScene) -> None:
    now = [0.0]
    launcher = scene.launcher(now=lambda: now[0])
    first = await launcher.launch(scene.payload("linger"), POLICY)
    await until(launcher, first, lambda seen: seen.state is LaunchState.RUNNING)
    second = await launcher.launch(scene.payload("linger"), Policy(600, 60))
    await until(launcher, second, lambda _: scene.server.named(second).submitted_at is not None)
    scene.server.named(second).submitted_at = 1.0  # as if it waited since 1970
    now[0] = 100.0
    assert (await until(launcher, second, lambda seen: seen.ended)).state is LaunchState.TIMED_OUT
    assert (await launcher.observe(at(launcher, first))).state is LaunchState.RUNNING
    await ended(launcher, first)


async def test_jobs_of_others_are_neither_seen_nor_cancelled(scene: SkyPilotScene, launcher: SkyPilotLauncher) -> None:
    stranger = scene.launcher(mark="f" * 10)
    name = await stranger.launch(scene.payload("linger"), POLICY)
    # Only a row of theirs knows the last digits.
    guessed = f"{name[:-8]}00000000"
    assert (await launcher.observe(at(launcher, guessed))).state is LaunchState.MISSING
    assert await launcher.cancel(at(launcher, guessed))
    assert not scene.server.named(name).is_cancelled.is_set()
    assert name not in [each.external_job_id for each in await launcher.owned()]
    # Of a row of this database: its project's address has been spelled anew since, and the mark with it.
    assert (await launcher.observe(at(launcher, name))).state in {LaunchState.QUEUED, LaunchState.RUNNING}
    assert await launcher.cancel(at(launcher, name))
    await ended(stranger, name)


async def test_many_looks_at_once_are_few_lists(scene: SkyPilotScene, launcher: SkyPilotLauncher) -> None:
    names = [f"lora-{uuid4().hex}-{MARK}-100m-{index:012x}" for index in range(50)]
    scene.server.calls.clear()
    seen = await asyncio.gather(*(launcher.observe(at(launcher, name)) for name in names))
    assert {each.state for each in seen} == {LaunchState.MISSING}
    assert scene.server.calls.count("/jobs/queue/v2") <= 2


# The process of the SDK.


def script(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def called(python: str, seconds: float = 60) -> Any:
    return await SkyClient("http://127.0.0.1:9", python=python, token="sky_t").call("list", seconds=seconds)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("exit 0", Problem.IN_DOUBT),
        ("echo nonsense; cat", Problem.IN_DOUBT),
        ("""echo '{"id": 1, "error": {"kind": "new", "text": ""}}'; cat""", Problem.IN_DOUBT),
        ("head -c 5000000 /dev/zero; cat", Problem.IN_DOUBT),
        ("""echo '{"problem": "No module named sky"}'; exit 1""", Problem.MISSING),
    ],
)
async def test_process_that_answers_nothing_usable_leaves_a_problem(
    tmp_path: Path, text: str, problem: Problem
) -> None:
    with pytest.raises(SkyError) as caught:
        await called(script(tmp_path, text))
    assert caught.value.problem is problem


def test_endpoints_of_one_server_share_its_process(scene: SkyPilotScene, launcher: SkyPilotLauncher) -> None:
    other = scene.launcher(url=f"{scene.server.url}#L4")
    assert other._clients[scene.server.url] is launcher._clients[scene.server.url]
    assert scene.launcher(key="x")._clients[scene.server.url] is not launcher._clients[scene.server.url]


async def test_call_that_hangs_ends_and_the_next_has_a_new_process(tmp_path: Path) -> None:
    client = SkyClient("http://127.0.0.1:9", python=script(tmp_path, "exec sleep 600"))
    processes = []
    for _ in range(2):
        with pytest.raises(SkyError, match="no answer within 0 s"):
            await client.call("list", seconds=0.2, text="x" * 200_000)  # more than a pipe holds
        processes.append(client._processes[0]._process)
    assert processes[0].pid != processes[1].pid
    assert [process.poll() is None for process in processes] == [False, False]


async def test_process_sees_its_token_and_nothing_of_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "SUPABASE_SERVICE_ROLE_KEY",
        "LORA_WORKER_X",
        "SKYPILOT_CONFIG",
        "AWS_SECRET_ACCESS_KEY",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "secret")
    with pytest.raises(SkyError):
        await called(script(tmp_path, f"env > {tmp_path}/env"))
    lines = (tmp_path / "env").read_text()
    assert "secret" not in lines
    assert "SKYPILOT_SERVICE_ACCOUNT_TOKEN=sky_t\n" in lines


async def test_python_that_is_none_is_one_sentence(scene: SkyPilotScene, tmp_path: Path) -> None:
    scene_python, scene.python = scene.python, str(tmp_path / "nothing")
    try:
        launcher = scene.launcher()
        with pytest.raises(ServiceRefusedError, match=r"can't be run .*|lora-worker\[skypilot\]"):
            await launcher.launch(scene.payload("complete"), POLICY)
        assert "skypilot" in ((await launcher.health()).problem or "")
    finally:
        scene.python = scene_python


async def test_server_that_is_not_there_puts_the_launch_off(scene: SkyPilotScene) -> None:
    with pytest.raises(ServiceUnavailableError):
        await scene.launcher(url="http://127.0.0.1:9").launch(scene.payload("complete"), POLICY)
