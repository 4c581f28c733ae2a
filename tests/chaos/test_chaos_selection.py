"""A small part of the chaos suite: some faults on few jobs, and a kill at some of the crash points.

`make chaos` and `make crashes` run all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lora_contract.crash_points import CRASH_POINTS
from lora_worker.launchers.registry import LAUNCHERS
from tests.chaos import crashes
from tests.chaos.__main__ import parse
from tests.chaos.clouds import CLOUDS
from tests.chaos.clouds.base import Cloud
from tests.chaos.faults import COMMON, FAULTS, faults_of
from tests.chaos.scene import Scene, play
from tests.chaos.world import World

pytestmark = pytest.mark.chaos

_JOBS = 20
_SEED = 1
_SELECTION = (
    "SIGKILL of one of two workers",
    "/run: accepted, and the answer lost",
    "GPU workers killed in the middle of jobs",
)
_POINTS = ("worker.launch.after_post", "worker.settle.before", "worker.settle.after", "trainer.upload.after_manifest")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.start(gpus=5) as started:
        yield started


@pytest.mark.parametrize("fault", _SELECTION)
def test_faults_and_crashes_lose_no_job_and_pay_for_none_twice(fault: str, world: World) -> None:
    row = play(world, fault, FAULTS[fault].act, jobs=_JOBS, seed=_SEED)
    assert row.is_clean, row.complaints
    assert row.completed == row.jobs == _JOBS


def test_crash_at_a_commit_point_loses_and_doubles_nothing() -> None:
    assert set(_POINTS) <= set(CRASH_POINTS)
    counts = []

    def act(scene: Scene) -> None:
        counts.extend(crashes.kill_everywhere(scene, seeds=1, only=_POINTS))

    with World.start(gpus=2, workers=1, env=crashes.ENV) as world:
        row = play(world, "SIGKILL at some crash points", act, jobs=0, seed=_SEED)
    assert row.is_clean, row.complaints
    assert [count.killed for count in counts] == [1] * len(_POINTS)


@pytest.mark.parametrize("patterns", [["--faults", "429"], ["--points", "none"], ["--faults", "", "--points", ""]])
def test_pattern_without_a_match_is_refused(patterns: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(patterns)
    assert ended.value.code == 2
    assert "--" in capsys.readouterr().err


@pytest.mark.parametrize("cloud", CLOUDS.values(), ids=CLOUDS)
def test_cloud_has_each_common_fault_or_says_why_not(cloud: type[Cloud]) -> None:
    assert COMMON.keys() - faults_of(cloud).keys() == cloud.spared.keys()
    assert all(reason.endswith(".") for reason in cloud.spared.values())


def test_every_launcher_has_a_cloud_to_break() -> None:
    assert CLOUDS.keys() == LAUNCHERS.keys()
