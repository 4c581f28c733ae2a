"""An execution of the trainer from its check-in to its published result, with a stand-in for the training process."""

import asyncio
import errno
import json
import signal
import threading

import httpx
import pytest

from lora_contract.error_codes import ErrorCode
from lora_contract.protocol import Manifest, Result
from lora_trainer.handler import parse_request
from lora_trainer.run.execution import fingerprint_of
from lora_trainer.run.volume import JobFolder
from tests.unit.trainer.project import TOKEN, request_input
from tests.unit.trainer.run.executing import Run


@pytest.mark.fault(31)
async def test_trained_adapter_is_published_with_its_manifest_last(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    run = Run(settings)
    result = await run.result()
    assert result.status == "completed"
    assert project.upload_order == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    manifest = Manifest.model_validate_json(project.uploads["manifest.json"])
    assert manifest.model_copy(update={"points": []}) == result.manifest
    assert [point.step for point in manifest.points] == [1, 2, 3]
    assert {file.path: file.bytes for file in manifest.files} == {
        "adapter_config.json": 2,
        "adapter_model.safetensors": 700,
    }
    assert project.upload_headers["adapter_model.safetensors"]["content-type"] == "application/octet-stream"
    assert project.upload_headers["manifest.json"]["content-type"] == "application/json"
    assert project.upload_headers["manifest.json"]["x-upsert"] == "true"
    assert [point.step for point in result.points] == [1, 2, 3]
    assert result.summary.execution_seconds > 0
    assert not (settings.volume / "lora-jobs" / "job-1").exists()


@pytest.mark.parametrize("ending", ["succeed_after:10000", "fail_after:10000"])
@pytest.mark.parametrize("chart_points", [100, 1000])
async def test_result_of_a_long_run_is_small_with_first_and_last_step(
    project, settings, monkeypatch, ending, chart_points
):
    monkeypatch.setenv("FAKE_CHILD", ending)
    limits = {"max_seconds": 600, "chart_points": chart_points}
    result = await Run(settings, limits=limits).result()
    assert len(json.dumps(result.as_output())) < 100_000
    assert (result.points[0].step, result.points[-1].step) == (1, 10_000)
    if result.status == "completed":
        points = Manifest.model_validate_json(project.uploads["manifest.json"]).points
        assert (points[0].step, points[-1].step) == (1, 10_000)
        assert 1000 <= len(points) <= 4000


async def test_progress_is_posted_in_order_and_stages_only_move_forward(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    run = Run(settings)
    await run.result()
    stages = [post["stage"] for post in run.posts]
    order = ["setup", "downloading", "preparing", "training", "saving", "uploading"]
    assert stages == sorted(stages, key=order.index)
    assert [post["progress"] for post in run.posts] == sorted(post["progress"] for post in run.posts)
    assert run.posts[-1]["points"]


async def test_execution_checks_the_fence_first_and_obeys_it(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    project.refusal = "superseded"
    run = Run(settings)
    result = await run.result()
    assert result.status == "superseded"
    assert result.error is None
    assert "error" not in result.as_output()
    assert not (tmp_path / "note.json").exists()
    assert project.check_ins[0]["external_job_id"] == "runpod-job-1"
    assert run.posts == []


async def test_a_cancelled_job_is_not_started(project, settings, tmp_path):
    project.refusal = "cancelled"
    result = await Run(settings).result()
    assert (result.status, result.error.code) == ("failed", ErrorCode.CANCELLED)
    assert not (tmp_path / "note.json").exists()


async def test_heartbeat_carries_each_change_of_progress_once(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "wait")
    run = Run(settings)
    task = run.start()
    await run.until_file("ready")
    while not (project.heartbeats and project.heartbeats[-1]["current_step"] == 3):
        await asyncio.sleep(0.01)
    stored, beats = len(project.heartbeats), len(project.check_ins)
    while len(project.check_ins) < beats + 3:
        await asyncio.sleep(0.01)
    assert len(project.heartbeats) == stored, "what was stored is not sent again"
    latest = project.heartbeats[-1]
    assert (latest["run_id"], latest["stage"]) == ("run-1", "training")
    assert [point["step"] for point in latest["points"]] == [1, 2, 3]
    run.execution.stop.set()
    assert (await task).error.code is ErrorCode.INTERRUPTED


async def test_stage_is_told_when_it_begins_and_not_at_the_next_heartbeat(project, settings, monkeypatch):
    """The seconds that a run spent in each stage are known by that."""
    monkeypatch.setenv("FAKE_CHILD", "wait")
    run = Run(settings.model_copy(update={"heartbeat_seconds": 3600}))
    task = run.start()
    while not (project.heartbeats and project.heartbeats[-1]["stage"] == "training"):
        await asyncio.sleep(0.01)
    run.execution.stop.set()
    assert (await task).error.code is ErrorCode.INTERRUPTED


async def test_database_of_an_earlier_release_gets_plain_heartbeats(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "wait")
    project.heartbeat_fault = httpx.Response(404, json={"code": "PGRST202", "message": "Could not find the function"})
    run = Run(settings)
    task = run.start()
    await run.until_file("ready")
    beats = len(project.check_ins)
    while len(project.check_ins) < beats + 3:
        await asyncio.sleep(0.01)
    project.refusal = "superseded"
    assert (await task).status == "superseded"
    assert project.heartbeats == []


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), OSError(errno.ESTALE, "stale"), FileNotFoundError()])
async def test_volume_that_cannot_be_written_does_not_end_a_healthy_run(project, settings, monkeypatch, caplog, fault):
    def broken(folder, run_id, seconds):
        if seconds > 0:
            refused.append(threading.current_thread())
            raise fault

    refused = []
    monkeypatch.setattr(JobFolder, "note_seconds", broken)
    monkeypatch.setenv("FAKE_CHILD", "wait")
    run = Run(settings)
    task = run.start()
    while len(refused) < 3 and not task.done():
        await asyncio.sleep(0.01)
    run.execution.stop.set()
    assert (await task).error.code is ErrorCode.INTERRUPTED
    assert threading.main_thread() not in refused, "a slow volume would hold up the heartbeat and the progress"
    assert type(fault).__name__ in caplog.text


async def test_folder_being_removed_is_not_written_to(project, settings, monkeypatch):
    def remove(folder):
        beats = len(project.check_ins)
        noted.clear()
        while len(project.check_ins) < beats + 3:
            threading.Event().wait(0.01)
        removed.append(list(noted))

    noted, removed = [], []
    monkeypatch.setattr(JobFolder, "remove", remove)
    monkeypatch.setattr(JobFolder, "note_seconds", lambda folder, run_id, seconds: noted.append(seconds))
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    assert (await Run(settings).result()).status == "completed"
    assert removed == [[]]


async def test_restarted_execution_continues_the_time_of_its_run(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "wait")
    earlier = JobFolder(settings.volume / "lora-jobs" / "job-1", "earlier")
    earlier.take("run-1")
    earlier.note_seconds("run-1", 3600)
    result = await asyncio.wait_for(Run(settings, limits={"max_seconds": 3600}).result(), 60)
    assert result.error.code is ErrorCode.TIME_LIMIT
    assert result.summary.execution_seconds >= 3600


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (f"signal:{int(signal.SIGSEGV)}", "SIGSEGV"),
        (f"signal:{int(signal.SIGKILL)}", "memory ran out"),
        ("exit:7", "exit code 7"),
        ("exit:0", "exit code 0"),
    ],
)
@pytest.mark.fault(59)
async def test_crashed_child_is_a_failure_that_names_the_cause(project, settings, monkeypatch, behaviour, words):
    monkeypatch.setenv("FAKE_CHILD", behaviour)
    result = await Run(settings).result()
    assert (result.status, result.error.code) == ("failed", ErrorCode.CHILD_CRASHED)
    assert words in result.error.message
    assert [point.step for point in result.points] == [1, 2, 3]


async def test_a_failure_also_fails_the_runpod_job_and_keeps_its_code(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "fail")
    output = (await Run(settings).result()).as_output()
    assert output.pop("error") == "Line 17 is not JSON."  # the keys that RunPod's SDK removes
    assert Result.model_validate(output).error.code is ErrorCode.DATASET_INVALID


async def test_out_of_memory_is_retried_with_a_smaller_micro_batch(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "out_of_memory_until:1")
    result = await Run(settings).result()
    assert result.status == "completed"
    assert result.summary.notes == ["micro-batch 1"]


async def test_the_child_gets_no_secret(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    await Run(settings).result()
    note = (tmp_path / "note.json").read_text()
    for secret in (TOKEN, "sb_publishable_x", "secret-of-runpod", "project.example/dataset"):
        assert secret not in note


@pytest.mark.fault(39)
async def test_adapter_without_a_grant_is_published_by_the_next_attempt(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    project.grants_after = 10_000
    first = await Run(settings, limits={"max_seconds": 600, "grant_wait_seconds": 0.05}).result()
    assert (first.status, first.error.code) == ("unpublished", ErrorCode.GRANT_MISSING)
    assert project.uploads == {}

    project.grants_after = 2
    (tmp_path / "note.json").unlink()
    second = await Run(settings, run_id="run-2", output={"bucket": "b", "prefix": "user/run-2/"}).result()
    assert second.status == "completed"
    assert not (tmp_path / "note.json").exists(), "it trained again"
    assert second.manifest.run_id == "run-2"


async def test_adapter_of_other_hyperparameters_is_not_reused(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    project.grants_after = 10_000
    await Run(settings, limits={"max_seconds": 600, "grant_wait_seconds": 0.05}).result()
    project.grants_after = 0
    (tmp_path / "note.json").unlink()
    changed = {"base_model": "tiny", "epochs": 2}
    assert (await Run(settings, hyperparameters=changed).result()).status == "completed"
    assert (tmp_path / "note.json").exists()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"other bytes", ErrorCode.DATASET_CHANGED),
        (b'{"messages": {}}\n', ErrorCode.DATASET_CHANGED),
    ],
)
async def test_a_dataset_that_changed_is_not_trained_on(project, settings, tmp_path, content, code):
    project.dataset = content
    result = await Run(settings).result()
    assert result.error.code is code
    assert not (tmp_path / "note.json").exists()


def test_values_added_at_launch_do_not_make_another_training():
    """Otherwise the second attempt would find neither checkpoint nor adapter of the first."""
    chosen = {"epochs": 2, "rank": 8, "base_model": "base"}
    first = parse_request(request_input(hyperparameters=chosen))
    enriched = {
        **chosen,
        "num_epochs": 2,
        "lora_rank": 8,
        "alpha": 16,
        "lora_alpha": 16,
        "dropout": first.hyperparameters.dropout,
    }
    second = parse_request(request_input(hyperparameters=enriched))
    assert fingerprint_of(first, "0" * 64) == fingerprint_of(second, "0" * 64)
    other = parse_request(request_input(hyperparameters={**chosen, "alpha": 64}))
    assert fingerprint_of(first, "0" * 64) != fingerprint_of(other, "0" * 64)
