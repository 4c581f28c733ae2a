"""A job of either queue may fail or be cancelled in any stage, and ends in the documented state.

All jobs run once, concurrently. `test_contract.py` tests what only the older queue has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from lora_worker.database.migrations import migrate
from sandbox.runpod import LocalRunPod
from sandbox.supabase.project import Project
from tests.application.pages import Pages
from tests.application.pipeline import Pipeline
from tests.application.user import DATASETS_BUCKET, PAIRS
from tests.database.rows import Row
from tests.processes.stage import Stage
from tests.processes.waiting import awaited, until

OLDER, NEWER = QUEUES = ("training_jobs", "pipeline_training_jobs")
CHILD_STAGES = ("preparing", "loading_model", "configuring", "training", "saving")
FAILED = (*CHILD_STAGES, "downloading")
CANCELLED = (*CHILD_STAGES, "uploading")
_SERVED = {"LORA_WORKER_MAX_ATTEMPTS": "1"}

Key = tuple[str, str, str]
"""Whether the job fails or lingers, in which stage, and in which queue."""


@dataclass
class Scene:
    """Every job, and how to read it in either queue."""

    stage: Stage
    pipeline: Pipeline
    pages: Pages
    jobs: dict[Key, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)

    def queue(self, what: str, stage: str, queue: str) -> str:
        """Queue a job whose dataset tells the stand-in what to do in which stage."""
        words = {"role": "user", "content": f"{what} in {stage}"}
        line = json.dumps({"messages": [words, {"role": "assistant", "content": "So be it."}]}).encode()
        dataset = self.stage.user.upload(b"\n".join([line] * PAIRS))
        if queue == OLDER:
            job_id = self.stage.user.queue(dataset, max_steps=10)
        else:
            job_id = str(self.pipeline.queue(user_id=self.stage.user.user_id, dataset_id=dataset, epochs=1))
        self.jobs[what, stage, queue] = job_id
        self.paths[job_id] = f"{self.stage.user.user_id}/{dataset}/Zebras.jsonl"
        return job_id

    def row(self, key: Key) -> Row:
        """The job's row; the older queue's as the monitor page reads it."""
        job_id = self.jobs[key]
        return self.pages.monitor(job_id) if key[2] == OLDER else self.pipeline.job(UUID(job_id))

    def cancel(self, key: Key) -> None:
        """The application's own update."""
        if key[2] == OLDER:
            self.stage.user.cancel_by_update(self.jobs[key])
        else:
            self.pipeline.cancel(UUID(self.jobs[key]))

    def until(self, keys: list[Key], condition: str) -> None:
        """Wait until the latest run of each job meets an SQL condition."""
        unmet = (
            "select wanted.id::text from unnest(%s::uuid[]) wanted(id)"
            f" where not exists (select from training_runs where job_id = wanted.id and {condition})"
        )
        jobs = [self.jobs[key] for key in keys]
        awaited(
            lambda: self.stage.database.rows(unmet, jobs), f"a run of each job has: {condition}",
            fits=lambda left: not left, state=self.stage.log,
        )  # fmt: skip

    def costs(self, key: Key) -> list[Row]:
        """The job's cost records."""
        return self.pipeline.costs(UUID(self.jobs[key]))

    def logged(self, key: Key) -> list[int]:
        """The steps in the log that is stored beside the artifact's place."""
        (run,) = self.stage.runs(self.jobs[key])
        content = self.stage.user.stored(f"{self.stage.user.user_id}/{run['id']}/training_log.jsonl") or b""
        return [json.loads(line)["step"] for line in content.splitlines()]

    def points(self, key: Key) -> list[int]:
        """The steps of the stored curve."""
        if key[2] == OLDER:
            return [point["step"] for point in self.pages.chart(self.jobs[key])]
        metrics = self.pipeline.metrics(UUID(self.jobs[key]))
        return [row["step_number"] for row in metrics if row["metric_id"] == "training_loss"]


@pytest.fixture(scope="module")
def scene(
    supabase: Project, gpus: LocalRunPod, gpu_volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """Every stage's jobs, played once."""
    with ExitStack() as stack:
        stage = stack.enter_context(closing(Stage(supabase, gpus, tmp_path_factory.mktemp("stages"), gpu_volume)))
        pipeline = Pipeline(stage.database)
        try:
            pipeline.create()
        except psycopg.errors.DuplicateTable:
            pytest.skip("the project has a queue of its own")
        stack.callback(pipeline.remove)
        migrate(supabase.database_url)
        made = Scene(stage, pipeline, Pages(stage.database, stage.user.user_id))
        # New jobs are made whole with the terms of whichever worker started last.
        stage.one_pass(**_SERVED)
        _fail_while_downloading(made)
        _fail_and_cancel_in_the_child(made)
        _cancel_while_uploading(made)
        yield made


def _fail_while_downloading(scene: Scene) -> None:
    """The dataset's file is replaced before a GPU downloads it."""
    stage = scene.stage
    stage.runpod.set_workers(throttled=True)
    try:
        keys: list[Key] = [("fail", "downloading", queue) for queue in QUEUES]
        for key in keys:
            scene.queue(*key)
        stage.one_pass(**_SERVED)
        scene.until(keys, "status = 'launched'")
        with stage.project.client() as service:
            for key in keys:
                service.post(
                    f"/storage/v1/object/{DATASETS_BUCKET}/{scene.paths[scene.jobs[key]]}",
                    content=b"{}",
                    headers={"content-type": "application/x-jsonlines", "x-upsert": "true"},
                ).raise_for_status()
    finally:
        stage.runpod.set_workers(throttled=False)


def _fail_and_cancel_in_the_child(scene: Scene) -> None:
    lingering: list[Key] = [("linger", name, queue) for name in CHILD_STAGES for queue in QUEUES]
    for key in lingering:
        scene.queue(*key)
        scene.queue("fail", *key[1:])
    worker = scene.stage.worker(**_SERVED)

    def cancel_those_that_linger() -> bool:
        for key in list(lingering):
            runs = scene.stage.runs(scene.jobs[key])
            if runs and runs[-1]["stage"] == key[1]:
                scene.cancel(key)
                lingering.remove(key)
        return not lingering

    until(
        cancel_those_that_linger, "each job lingers in its stage",
        state=lambda: f"{scene.stage.log()}\nnot yet: {lingering}",
    )  # fmt: skip
    scene.until(list(scene.jobs), "ended_at is not null")
    scene.stage.stop(worker)


def _cancel_while_uploading(scene: Scene) -> None:
    """Cancel while the trainer waits for its grant, with no worker running to issue it."""
    keys: list[Key] = [("none", "uploading", queue) for queue in QUEUES]
    for key in keys:
        scene.queue(*key)
    worker = scene.stage.worker(LORA_CRASH="worker.grant.before=stop", **_SERVED)
    scene.until(keys, "upload_request is not null")
    scene.stage.kill(worker)
    for key in keys:
        scene.cancel(key)
    worker = scene.stage.worker(**_SERVED)
    scene.until(keys, "ended_at is not null")
    scene.stage.stop(worker)


def _cases(what: str, stages: tuple[str, ...]) -> Any:
    keys = [("none" if what == "linger" and name == "uploading" else what, name, q) for name in stages for q in QUEUES]
    return pytest.mark.parametrize("key", keys, ids=lambda key: f"{key[1]}-{key[2]}")


@_cases("fail", FAILED)
def test_failure_in_any_stage_has_a_reason_a_bill_and_no_deployment(scene: Scene, key: Key) -> None:
    job = scene.row(key)
    assert job["status"] == "failed"
    assert ("replaced meanwhile" if key[1] == "downloading" else f"It failed in {key[1]}.") in job["error_message"]
    assert job["completed_at"] is not None
    (run,) = scene.stage.runs(scene.jobs[key])
    assert run["status"] == "failed"
    (cost,) = scene.costs(key)
    assert (cost["details"]["outcome"], cost["details"]["run_id"]) == ("failed", run["id"])
    assert len(scene.points(key)) == (10 if key[1] == "saving" else 0)
    assert scene.logged(key) == scene.points(key)
    _assert_nothing_is_published(scene, key)
    if key[2] == OLDER:
        assert job["current_stage"] == "failed"
        assert scene.stage.user.notices(scene.jobs[key]) == ["job_failed", "job_started"]
        assert job["final_cost"] == cost["amount"]


@_cases("linger", CANCELLED)
def test_cancel_in_any_stage_lasts_stops_the_gpu_and_is_billed(scene: Scene, key: Key) -> None:
    job = scene.row(key)
    assert job["status"] == "cancelled"
    assert job["error_message"] is None
    (run,) = scene.stage.runs(scene.jobs[key])
    assert (run["status"], run["external_job_id"] is not None) == ("cancelled", True)
    assert scene.stage.at_runpod(run["external_job_id"])["status"] in {"CANCELLED", "FAILED"}
    (cost,) = scene.costs(key)
    assert cost["details"]["outcome"] == "cancelled"
    assert cost["details"]["gpu_seconds"] > 0
    assert len(scene.points(key)) == (10 if key[1] in {"saving", "uploading"} else 0)
    assert scene.logged(key) == scene.points(key)
    _assert_nothing_is_published(scene, key)


def _assert_nothing_is_published(scene: Scene, key: Key) -> None:
    job_id = scene.jobs[key]
    if key[2] == OLDER:
        assert scene.row(key)["artifact_id"] is None
        assert job_id not in {model["job_id"] for model in scene.pages.models()}
    else:
        assert scene.row(key)["adapter_file_path"] is None
        assert scene.pipeline.webhook_calls(UUID(job_id)) == 0


def test_pages_read_only_known_values_after_an_end_in_any_stage(scene: Scene) -> None:
    for read in (scene.pages.jobs, scene.pages.models, scene.pages.notifications):
        read()
    for (_, _, queue), job_id in scene.jobs.items():
        if queue == OLDER:
            scene.pages.monitor(job_id)
            scene.pages.chart(job_id)
