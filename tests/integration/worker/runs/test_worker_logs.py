"""`lora-worker logs` says why a run ended, also when its container was killed or its image never started."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.runpod import LocalRunPod
from sandbox.standin import Mishap
from tests.handlers.leaky_training import Ending
from tests.processes.stage import Stage
from tests.processes.waiting import awaited

REST = "LORA_WORKER_RUNPOD_API_URL"


@pytest.fixture
def broken() -> Iterator[LocalRunPod]:
    """An endpoint whose image lacks what its handler imports."""
    with LocalRunPod.start(handler_module="tests.handlers.fails_at_import", workers_max=1) as runpod:
        yield runpod


def kept_log(stage: Stage, job_id: str, *arguments: str) -> str:
    """Wait until the command shows the kept log of the job's run."""

    def read() -> str | None:
        answer = stage.command("logs", job_id, *arguments, "--json", **{REST: stage.runpod.rest_url})
        found = json.loads(answer.stdout) if answer.stdout.startswith("{") else {}
        return "\n".join(found["lines"]) if found.get("source") == "kept" else None

    return awaited(read, "the log is kept", state=stage.log)


WHY = {
    Ending.WELL: ("completed", "the execution ends as completed"),
    Ending.RAISED: ("failed", "ValueError: […]"),
    Ending.KILLED: ("failed", "was killed (SIGKILL), probably because the machine's main memory ran out"),
    Ending.NO_MEMORY: ("failed", "MemoryError"),
}


def test_log_says_how_each_training_ended_and_quotes_nothing(
    stage_with: Callable[..., Stage], leaky_gpu: tuple[LocalRunPod, Path]
) -> None:
    stage = stage_with(*leaky_gpu)
    jobs = {ending: stage.user.queue(max_steps=5, seed=int(ending)) for ending in WHY}
    stage.worker(LORA_WORKER_MAX_ATTEMPTS="1")
    for ending, job_id in jobs.items():
        status, why = WHY[ending]
        job = stage.ended(job_id)
        assert job["status"] == status
        log = kept_log(stage, job_id)
        assert why in log, log
        assert "with [secret] it goes on" in log
        assert "leaky_training.py:" in log, log
        assert "log" not in (job["error_message"] or "")
        (run,) = stage.runs(job_id)
        assert stage.user.stored(f"{stage.user.user_id}/{run['id']}/log.txt") is not None
        assert f"lora-worker logs {job_id} --run 1" in stage.log()


def test_log_of_a_killed_container_comes_from_runpod(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=10, seed=int(Mishap.KILL_WORKER))
    stage.worker(**{REST: stage.runpod.rest_url})
    log = kept_log(stage, job_id, "--run", "1")
    run = stage.runs(job_id)[0]
    assert "failed (lost)" in log
    assert "── container " in log
    assert f"run {run['id']}, attempt 1" in log
    assert "log read from RunPod" in log


def test_broken_image_is_explained_while_the_job_waits_and_afterwards(
    broken: LocalRunPod, stage_with: Callable[..., Stage]
) -> None:
    why = "ImportError: libcudart.so.12: cannot open shared object file"
    stage = stage_with(broken)
    job_id = stage.user.queue()
    worker = stage.worker(**{REST: broken.rest_url})
    live = awaited(
        lambda: stage.command("logs", job_id, **{REST: broken.rest_url}).stdout,
        "the command shows why no worker starts", fits=lambda shown: why in shown, state=stage.log,
    )  # fmt: skip
    assert "fails_at_import.py" in live
    stage.stop(worker)
    stage.worker(**{REST: broken.rest_url}, LORA_WORKER_MAX_START_SECONDS="1")
    log = kept_log(stage, job_id, "--run", "1")
    assert why in log, log
    assert "gpu_never_ready" in log


def test_live_run_is_followed_to_its_end(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=80)
    stage.worker(**{REST: stage.runpod.rest_url})
    stage.training(job_id)
    done = stage.command("logs", job_id, "--follow", **{REST: stage.runpod.rest_url})
    assert done.returncode == 0, done.stderr
    (run,) = stage.runs(job_id)
    for line in (f"run {run['id']}, attempt 1", "the execution ends as completed", "# ended "):
        assert done.stdout.count(line) == 1
    assert "run 1 ended as succeeded" in done.stderr


def test_worker_that_dies_after_storing_the_log_still_settles(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    worker = stage.worker(LORA_CRASH="worker.container_log.after=kill")
    assert stage.dies(worker) != 0
    stage.expire_leases()
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert "the execution ends as completed" in kept_log(stage, job_id)
