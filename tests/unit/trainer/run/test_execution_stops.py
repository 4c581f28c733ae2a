"""An execution that is stopped: by the fence, by RunPod, by SIGTERM, by its time limit."""

import asyncio

import httpx
import pytest

from lora_contract.protocol import ErrorCode
from lora_trainer.run.execution import stop_margin_seconds
from tests.unit.trainer.run.executing import Run, child_note, is_running


@pytest.mark.parametrize(("refusal", "status"), [("superseded", "superseded"), ("cancelled", "failed")])
async def test_losing_the_fence_while_training_kills_the_child_at_once(
    project, settings, monkeypatch, tmp_path, refusal, status
):
    monkeypatch.setenv("FAKE_CHILD", "ignore_sigterm")
    run = Run(settings)
    task = run.start()
    await run.until_file("ready")
    project.refusal = refusal
    result = await task
    assert result.status == status
    assert not is_running(child_note(tmp_path)["pid"])


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<html>Just a moment</html>"),
        httpx.Response(200, json={"may_train": False, "reason": "paused"}),
        httpx.Response(503, json={"code": "PGRST002", "message": "no schema cache"}),
    ],
    ids=lambda answer: answer.text[:30],
)
async def test_unanswered_heartbeat_does_not_end_the_training(project, settings, monkeypatch, answer):
    monkeypatch.setenv("FAKE_CHILD", "wait")
    run = Run(settings)
    task = run.start()
    await run.until_file("ready")
    project.refusal = "superseded"
    project.check_in_answers = [answer] * 3
    result = await task
    # The fourth answer came from the function; the three before did not.
    assert project.check_in_answers == []
    assert result.status == "superseded"


async def test_job_stop_lets_the_child_save_a_checkpoint_first(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CHILD", "wait")
    run = Run(settings)
    task = run.start()
    await run.until_file("ready")
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # RunPod may repeat the signal
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await run.until_file("saved")
    assert not is_running(child_note(tmp_path)["pid"])


async def test_sigterm_saves_a_checkpoint_and_blames_nobody(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "wait")
    run = Run(settings)
    task = run.start()
    await run.until_file("ready")
    run.execution.stop.set()
    result = await task
    assert result.error.code is ErrorCode.INTERRUPTED
    assert await run.until_file("saved")
    assert [point.step for point in result.points] == [1, 2, 3]


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CHILD", "ignore_sigterm")
    run = Run(settings.model_copy(update={"grace_seconds": 0.05}))
    task = run.start()
    await run.until_file("ready")
    run.execution.stop.set()
    assert (await task).error.code is ErrorCode.INTERRUPTED
    assert not is_running(child_note(tmp_path)["pid"])


async def test_the_child_is_stopped_before_the_time_limit(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "wait")
    run = Run(settings, limits={"max_seconds": 3})
    result = await run.result()
    assert result.error.code is ErrorCode.TIME_LIMIT
    assert await run.until_file("saved")
    assert stop_margin_seconds(3, 60) == pytest.approx(0.3)
    assert stop_margin_seconds(36_000, 60) == 90


async def test_run_stopped_while_waiting_for_a_grant_is_unpublished(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    project.grants_after = 10_000
    run = Run(settings)
    task = run.start()
    while not project.requested:
        await asyncio.sleep(0.02)
    run.execution.stop.set()
    assert (await task).status == "unpublished"


@pytest.mark.parametrize("ends", ["time_limit", "sigterm"])
async def test_adapter_saved_by_a_stopped_child_is_unpublished_not_lost(project, settings, monkeypatch, ends):
    monkeypatch.setenv("FAKE_CHILD", "measure")
    run = Run(settings, limits={"max_seconds": 3 if ends == "time_limit" else 600})
    task = run.start()
    await run.until_file("ready")
    if ends == "sigterm":
        run.execution.stop.set()
    result = await task
    assert (result.status, result.error.code) == ("unpublished", ErrorCode.GRANT_MISSING)
    assert result.summary.total_steps == 1, "what was trained is told"

    monkeypatch.setenv("FAKE_CHILD", "exit:9")
    assert (await Run(settings).result()).status == "completed"
