"""A job of the newer queue from its row to its deployment, with the same worker and trainer."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from sandbox.supabase.project import Project
from tests.application.pipeline import OURS, Pipeline
from tests.application.user import DATASET_WORD, ENDED, LINE, PAIRS
from tests.database.rows import Database, Row
from tests.processes.stage import Stage
from tests.processes.waiting import awaited, until


@pytest.fixture
def pipeline(empty_supabase: Project) -> Iterator[Pipeline]:
    database = Database(empty_supabase.database_url)
    made = Pipeline(database)
    try:
        made.create()
    except psycopg.errors.DuplicateTable:
        pytest.skip("the project has a queue of its own")
    yield made
    made.remove()
    database.close()


@pytest.fixture
def stage(pipeline: Pipeline, stage: Stage) -> Stage:
    """A stage whose newer queue exists before its worker starts, and is dropped after it."""
    return stage


def queued(stage: Stage, pipeline: Pipeline, **columns: Any) -> UUID:
    return pipeline.queue(**{"user_id": stage.user.user_id, "dataset_id": stage.user.upload(), **columns})


def endless(stage: Stage, pipeline: Pipeline) -> UUID:
    """Queue a job that trains half of its 200 steps and then waits until it is stopped."""
    dataset = stage.user.upload(b"\n".join([LINE.replace(DATASET_WORD.encode(), b"linger in half")] * 3))
    return queued(stage, pipeline, dataset_id=dataset, epochs=20)


def ended(pipeline: Pipeline, job_id: UUID) -> Row:
    return awaited(lambda: pipeline.job(job_id), "the job ends", fits=lambda row: row["status"] in ENDED)


def training(pipeline: Pipeline, job_id: UUID) -> Row:
    return awaited(lambda: pipeline.job(job_id), "step 3 is shown", fits=lambda row: (row["current_step"] or 0) >= 3)


def settled(stage: Stage, job_id: UUID) -> list[Row]:
    """Wait until no run of the job is live; returns its runs."""
    return awaited(
        lambda: stage.runs(str(job_id)), "every run ends", fits=lambda runs: all(run["ended_at"] for run in runs)
    )


def unpacked(stage: Stage, job_id: UUID) -> dict[str, bytes]:
    """The archive's files as the deployment unpacks them: without the first part of each name."""
    content = stage.user.stored(f"adapters/{job_id}.tar.gz")
    assert content is not None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        assert len({member.name.split("/")[0] for member in members}) == 1
        return {m.name.split("/", 1)[1]: file.read() for m in members if (file := archive.extractfile(m))}


def test_completed_job_has_its_archive_and_is_deployed_once(stage: Stage, pipeline: Pipeline) -> None:
    job_id = queued(stage, pipeline)
    before = pipeline.job(job_id)
    stage.worker()
    job = ended(pipeline, job_id)
    assert (job["status"], job["progress"], job["error_message"]) == ("completed", 100, None)
    assert job["adapter_file_path"] == f"lora-models/adapters/{job_id}.tar.gz"
    assert (job["current_step"], job["total_steps"]) == (20, 20)
    assert min(job[name] for name in ("current_loss", "current_learning_rate", "final_loss", "actual_cost")) >= 0
    assert type(job["training_time_seconds"]) is int
    (run,) = settled(stage, job_id)
    assert job["runpod_job_id"] == run["external_job_id"]
    assert job["created_at"] < job["started_at"] < job["completed_at"] <= job["updated_at"]
    assert pipeline.webhook_calls(job_id) == 1
    stage.one_pass()
    assert pipeline.job(job_id) == job
    assert {name for name in job if job[name] != before[name]} <= OURS
    (cost,) = pipeline.costs(job_id)
    assert (str(cost["user_id"]), cost["amount"]) == (stage.user.user_id, job["actual_cost"])
    assert stage.user.notices(str(job_id)) == []


@pytest.mark.fault(37)
def test_archive_holds_the_verified_files_under_one_folder(stage: Stage, pipeline: Pipeline) -> None:
    """An archive that an earlier attempt left at the same path is overwritten."""
    job_id = queued(stage, pipeline)
    stage.user.overwrite(f"adapters/{job_id}.tar.gz", b"of an attempt that is long gone")
    stage.worker()
    ended(pipeline, job_id)
    (run,) = settled(stage, job_id)
    files, folder = unpacked(stage, job_id), f"{stage.user.user_id}/{run['id']}/"
    assert json.loads(files["adapter_config.json"]) == {"peft_type": "LORA"}
    manifest = json.loads(stage.user.stored(f"{folder}manifest.json") or b"{}")
    listed = {file["path"] for file in manifest["files"]}
    assert listed == {*files, "adapter.tar.gz"}
    for name, content in files.items():
        assert content == stage.user.stored(folder + name)
    # The archive is stored at the job's path only; the run's own folder has no copy.
    assert stage.user.stored(f"{folder}adapter.tar.gz") is None


@pytest.mark.fault(22, 17)
def test_states_and_percents_only_advance_with_each_metric_once(stage: Stage, pipeline: Pipeline) -> None:
    """The application never wrote metrics of this queue; the worker does."""
    job_id = queued(stage, pipeline, epochs=3)
    stage.worker()
    ended(pipeline, job_id)
    shown = [row["progress"] for row in pipeline.history(job_id)]
    assert {type(percent) for percent in shown} == {int}
    assert all(earlier <= later for earlier, later in pairwise(shown))
    states = ["initializing", "running", "completed"]
    passed = [row["status"] for row in pipeline.history(job_id)]
    assert passed == sorted(passed, key=states.index)
    assert set(passed) == set(states)
    all_metrics = pipeline.metrics(job_id)
    assert len({(row["step_number"], row["metric_id"]) for row in all_metrics}) == len(all_metrics)
    # What was measured against the base belongs to no step.
    metrics = [row for row in all_metrics if row["step_number"] is not None]
    stored = {(row["step_number"], row["metric_id"]) for row in metrics}
    assert stored == {(s, m) for s in range(1, 31) for m in ("training_loss", "learning_rate", "throughput")}
    # The metrics route sorts by time only.
    assert [row["step_number"] for row in metrics] == sorted(row["step_number"] for row in metrics)


def test_job_stopped_at_runpod_fails_and_is_never_deployed(stage: Stage, pipeline: Pipeline) -> None:
    job_id = endless(stage, pipeline)
    stage.worker()
    external_job_id = training(pipeline, job_id)["runpod_job_id"]
    headers = {"Authorization": f"Bearer {stage.runpod.api_key}"}
    httpx.post(f"{stage.runpod.api_url}/cancel/{external_job_id}", headers=headers).raise_for_status()
    job = ended(pipeline, job_id)
    assert job["status"] == "failed"
    assert "stopped at the GPU provider" in job["error_message"]
    assert job["completed_at"] is not None
    assert job["adapter_file_path"] is None
    assert pipeline.webhook_calls(job_id) == 0
    (cost,) = pipeline.costs(job_id)
    assert cost["details"]["outcome"] == "failed"


def test_invalid_job_fails_before_a_gpu_is_paid_for(stage: Stage, pipeline: Pipeline) -> None:
    wrong = {
        "names no dataset": queued(stage, pipeline, dataset_id=None),
        "The validation of the dataset": queued(stage, pipeline, dataset_id=stage.user.upload(status="error")),
        "epochs": queued(stage, pipeline, epochs=999),
        "is not in the storage": queued(stage, pipeline, dataset_id=None, dataset_file_path="nowhere/training.jsonl"),
        "not a GPU that is offered": queued(stage, pipeline, gpu_type="Voodoo2"),
    }
    stage.worker()
    for words, job_id in wrong.items():
        job = ended(pipeline, job_id)
        assert job["status"] == "failed"
        assert words in job["error_message"]
        assert stage.launches(str(job_id)) == []
        assert pipeline.costs(job_id) == []


def test_applications_cancel_stops_the_gpu_and_deploys_nothing(stage: Stage, pipeline: Pipeline) -> None:
    job_id = endless(stage, pipeline)
    worker = stage.worker()
    training(pipeline, job_id)
    pipeline.cancel(job_id)
    (run,) = settled(stage, job_id)
    assert run["status"] == "cancelled"
    assert stage.at_runpod(run["external_job_id"])["status"] in {"CANCELLED", "FAILED"}
    stage.stop(worker)
    job = pipeline.job(job_id)
    stage.one_pass()
    assert pipeline.job(job_id) == job
    assert (job["status"], job["adapter_file_path"]) == ("cancelled", None)
    (cost,) = pipeline.costs(job_id)
    assert cost["details"]["gpu_seconds"] > 0
    assert job["actual_cost"] == cost["amount"]
    assert len(stage.steps(str(job_id))) < 200
    assert pipeline.webhook_calls(job_id) == 0


def test_job_of_a_lost_machine_is_retried_and_deployed_once(stage: Stage, pipeline: Pipeline) -> None:
    stage.runpod.faults.add("progress", "kill_worker", times=3)
    job_id = queued(stage, pipeline, epochs=6)
    stage.worker()
    assert ended(pipeline, job_id)["status"] == "completed"
    assert [run["status"] for run in settled(stage, job_id)] == ["lost", "succeeded"]
    states = [row["status"] for row in pipeline.history(job_id)]
    assert states.index("pending") < states.index("completed")
    steps = [row["step_number"] for row in pipeline.metrics(job_id) if row["metric_id"] == "training_loss"]
    assert steps == list(range(1, 61))
    assert len(pipeline.costs(job_id)) == 2
    assert pipeline.webhook_calls(job_id) == 1


def test_archive_that_contradicts_the_manifest_completes_no_job(stage: Stage, pipeline: Pipeline) -> None:
    job_id = queued(stage, pipeline)
    worker = stage.worker(LORA_CRASH="worker.grant.after=kill")
    assert stage.dies(worker) != 0
    (run,) = stage.runs(str(job_id))
    until(lambda: stage.user.stored(f"uploads/{run['id']}/manifest.json"), "the manifest is uploaded")
    stage.user.overwrite(f"uploads/{run['id']}/adapter.tar.gz", b"something else")
    stage.expire_leases()
    stage.worker()
    assert ended(pipeline, job_id)["status"] == "completed"
    first, second = settled(stage, job_id)
    assert (first["error_code"], second["status"]) == ("artifact_missing", "succeeded")
    assert "adapter.tar.gz" in first["error_message"]
    assert "adapter_config.json" in unpacked(stage, job_id)
    assert pipeline.webhook_calls(job_id) == 1


@pytest.mark.fault(51)
def test_job_that_names_only_a_file_trains_from_that_file(stage: Stage, pipeline: Pipeline) -> None:
    """Without a dataset's row, the bucket is the training files' own; with one, it is the row's."""
    with stage.project.client() as service:
        path = f"{stage.user.user_id}/training.jsonl"
        service.post(
            f"/storage/v1/object/training-files/{path}",
            content=b"\n".join([LINE] * PAIRS),
            headers={"content-type": "application/x-ndjson"},
        ).raise_for_status()
    job_id = queued(stage, pipeline, dataset_id=None, dataset_file_path=path, dataset_name="Zebras")
    stage.worker()
    assert ended(pipeline, job_id)["status"] == "completed"


def test_both_queues_are_served_side_by_side(stage: Stage, pipeline: Pipeline) -> None:
    older, newer = stage.user.queue(max_steps=20), queued(stage, pipeline)
    stage.worker()
    assert stage.ended(older)["status"] == ended(pipeline, newer)["status"] == "completed"
    (run,) = stage.runs(older)
    assert "adapter.tar.gz" not in stage.user.artifact(older)["artifacts"]
    assert stage.user.stored(f"adapters/{older}.tar.gz") is None
    assert run["queue"] == "training_jobs"
