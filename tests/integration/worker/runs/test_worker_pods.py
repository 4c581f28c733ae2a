"""Pods of RunPod under a worker that is killed: none is left, none is made twice, and a finished one is not kept."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_worker.launchers.marks import run_of_name
from sandbox.runpod import LocalRunPod
from sandbox.standin import Mishap, standin_env
from tests.processes.stage import Stage
from tests.processes.waiting import until

WHILE_LAUNCHING = ("before_post", "after_post", "after_record")


class Account:
    """The stage of workers that launch pods."""

    def __init__(self, stage: Stage, runpod: LocalRunPod) -> None:
        self.stage, self.runpod = stage, runpod

    def worker(self, **more: str) -> Any:
        return self.stage.worker(
            LORA_WORKER_LAUNCHER="runpod-pods", LORA_WORKER_RUNPOD_API_URL=self.runpod.rest_url,
            LORA_WORKER_RUNPOD_PODS_IMAGE="trainer:1", **more,
        )  # fmt: skip

    def killed_at(self, point: str) -> None:
        """A worker that lives until it comes to this point."""
        assert self.stage.dies(self.worker(LORA_CRASH=f"{point}=kill")) == -signal.SIGKILL

    def log(self) -> str:
        return "\n".join([self.stage.log(), self.runpod.logs()])


@pytest.fixture
def runpod(tmp_path: Path) -> Iterator[LocalRunPod]:
    env = {**standin_env(tmp_path / "volume"), "LORA_TRAINER_GRACE_SECONDS": "20"}
    with LocalRunPod.start(
        handler_module="tests.handlers.errands", workers_max=0, env=env, rest_calls_per_minute=100_000
    ) as runpod:
        yield runpod


@pytest.fixture
def account(runpod: LocalRunPod, stage_with: Callable[..., Stage], tmp_path: Path) -> Account:
    return Account(stage_with(runpod, tmp_path / "volume"), runpod)


def test_worker_killed_at_any_point_leaves_no_pod(account: Account) -> None:
    stage, jobs = account.stage, []
    for point in WHILE_LAUNCHING:
        jobs.append(stage.user.queue(max_steps=5000, seed=int(Mishap.ENDLESS)))
        account.killed_at(f"worker.launch.{point}")
    assert account.runpod.pods()
    for job_id in jobs:
        stage.user.cancel_by_update(job_id)
    for point in ("worker.cancel.before", "worker.cancel.after", "worker.settle.before", "worker.settle.after"):
        stage.expire_leases()
        account.killed_at(point)
    finished = stage.user.queue(max_steps=5)
    stage.expire_leases()
    account.worker()
    for job_id in jobs:
        stage.settled(job_id)
        assert stage.user.job(job_id)["status"] == "cancelled"
    assert stage.ended(finished)["status"] == "completed", account.log()
    assert len(stage.user.costs(finished)) == 1
    until(lambda: account.runpod.pods() == [], "no pod is left", state=account.log)
    lives = tuple(account.runpod.ledger.pods)
    assert all(life.ended_at is not None for life in lives)
    assert set(Counter(run_of_name(life.name) for life in lives).values()) == {1}, "one pod a run"
