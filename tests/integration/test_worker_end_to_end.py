"""The worker as a process against a real Supabase and a real RunPod SDK worker; only the training is light."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from sandbox.project import Project
from sandbox.runpod import LocalRunPod
from sandbox.standin import Mishap, read_steps, runs_trained_twice, standin_env

LINE = {
    "messages": [
        {"role": "user", "content": "Zebrafinch question"},
        {"role": "assistant", "content": "Zebrafinch answer"},
    ]
}
GOOD = "\n".join(json.dumps(LINE) for _ in range(4)).encode()
BASE = "standin"
ENDED = {"completed", "failed", "cancelled"}


class Stage:
    """One project, one endpoint, and what the application does with them."""

    def __init__(self, project: Project, runpod: LocalRunPod, folder: Path) -> None:
        self.project, self.runpod, self.folder = project, runpod, folder
        self.user = project.create_user(f"{uuid4().hex}@example.com")
        self.service = project.client()
        self.processes: list[subprocess.Popen[bytes]] = []

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.project.database_url, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def dataset(self, content: bytes | None = GOOD, **columns: Any) -> str:
        dataset_id = str(uuid4())
        path = f"{self.user}/{dataset_id}/data.jsonl"
        if content is not None:
            answer = self.service.post(
                f"/storage/v1/object/lora-datasets/{path}", content=content, headers={"content-type": "text/plain"}
            )
            assert answer.status_code == 200
        row = {"status": "ready", "training_ready": True, "deleted_at": None, **columns}
        self.rows(
            "insert into datasets (id, user_id, name, storage_path, file_name, file_size, status, training_ready,"
            " deleted_at) values (%s, %s, 'Zebras', %s, 'data.jsonl', 1, %s, %s, %s)",
            dataset_id, self.user, path, row["status"], row["training_ready"], row["deleted_at"],
        )  # fmt: skip
        return dataset_id

    def job(self, dataset_id: str | None = None, gpu: dict[str, Any] | None = None, **hyperparameters: Any) -> str:
        chosen = {"base_model": BASE, "learning_rate": 1e-4, "batch_size": 4, "epochs": 2, "rank": 8, **hyperparameters}
        made = self.rows(
            "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
            " estimated_total_cost, current_metrics) values (%s, %s, 'custom', %s, %s, 2, 1, '{}') returning id",
            self.user, dataset_id or self.dataset(), json.dumps(chosen),
            json.dumps(gpu or {"type": "A100-80GB", "count": 1}),
        )  # fmt: skip
        return str(made[0]["id"])

    def read(self, job_id: str) -> dict[str, Any]:
        return self.rows("select * from training_jobs where id = %s", job_id)[0]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LORA_", "SUPABASE_"))}
        return {
            **kept,
            "SUPABASE_URL": self.project.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.project.secret_key,
            "SUPABASE_PUBLISHABLE_KEY": self.project.publishable_key,
            "GPU_CLUSTER_API_URL": self.runpod.api_url,
            "GPU_CLUSTER_API_KEY": self.runpod.api_key,
            "LORA_WORKER_BASE_MODELS": BASE,
            "LORA_WORKER_POLL_SECONDS": "0.4",
            "LORA_WORKER_LEASE_SECONDS": "6",
            "LORA_WORKER_DOUBT_SECONDS": "3",
            "LORA_WORKER_LOST_SECONDS": "5",
            "LORA_WORKER_RETRY_BASE_SECONDS": "0.5",
            "LORA_WORKER_MAX_PER_USER": "",
            **more,
        }

    def worker(self, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "worker.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "run", *arguments],
            env=self.environment(**more),
            stderr=log,
            stdout=log,
        )
        log.close()
        self.processes.append(process)
        return process

    def until(self, job_id: str, done: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not done(row := self.read(job_id)):
            assert time.monotonic() < deadline, f"still {row['status']} in {row['current_stage']}: {self.log()[-1500:]}"
            time.sleep(0.1)
        return row

    def ended(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        return self.until(job_id, lambda row: row["status"] in ENDED, seconds)

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        process.send_signal(signal.SIGTERM)
        return process.wait(10)

    def launches(self) -> int:
        return len(self.runpod.ledger.launches)


@pytest.fixture(scope="module")
def runpod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRunPod]:
    folder = tmp_path_factory.mktemp("volume")
    with LocalRunPod.start(workers_max=2, env=standin_env(folder, step_seconds=0.05), rate_limits={}) as local:
        local.steps = folder / "steps.jsonl"  # type: ignore[attr-defined]
        yield local


@pytest.fixture
def stage(empty_supabase: Project, runpod: LocalRunPod, tmp_path: Path) -> Iterator[Stage]:
    runpod.faults.clear()
    made = Stage(empty_supabase, runpod, tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    made.rows("update training_runs set status = 'lost' where status in ('claimed', 'launched', 'running')")
    made.service.close()


def test_a_queued_job_ends_with_everything_that_follows_from_it(stage: Stage) -> None:
    job_id = stage.job(max_steps=30)
    stage.worker()
    row = stage.ended(job_id)
    assert (row["status"], row["current_stage"], row["progress"], row["error_message"]) == (
        "completed", "completed", 100, None,
    )  # fmt: skip
    assert row["completed_at"] is not None
    assert row["started_at"] is not None
    (run,) = stage.rows("select * from training_runs where job_id = %s", job_id)
    assert row["artifact_id"] == run["id"]
    (cost,) = stage.rows("select * from cost_records where job_id = %s", job_id)
    assert cost["details"]["run_id"] == str(run["id"])
    assert float(row["final_cost"]) == float(cost["amount"])
    kinds = [n["type"] for n in stage.rows("select type from notifications where user_id = %s", stage.user)]
    assert sorted(kinds) == ["artifact_ready", "job_completed", "job_started"]
    steps = [p["step"] for p in stage.rows("select step from metrics_points where job_id = %s order by step", job_id)]
    assert steps == list(range(1, 31))


def test_both_shapes_train_and_cost_the_same_rate_and_keep_their_keys(stage: Stage) -> None:
    short = stage.job(max_steps=5)
    long = stage.job(
        gpu={"gpu_type": "A100-80GB", "num_gpus": 1, "gpu_memory_gb": 80, "cost_per_gpu_hour": 3.5}, max_steps=5
    )
    stage.rows(
        "update training_jobs set hyperparameters = hyperparameters - 'epochs' - 'rank'"
        " || '{\"num_epochs\": 2, \"lora_rank\": 8, \"lora_alpha\": 16, \"lora_dropout\": 0.1}' where id = %s", long,
    )  # fmt: skip
    stage.worker()
    rows = [stage.ended(job_id) for job_id in (short, long)]
    assert [row["status"] for row in rows] == ["completed", "completed"]
    for row in rows:
        assert {"epochs", "num_epochs", "rank", "lora_rank"} <= row["hyperparameters"].keys()
        assert {"type", "gpu_type", "count", "num_gpus", "cost_per_gpu_hour"} <= row["gpu_config"].keys()
    assert rows[1]["gpu_config"]["cost_per_gpu_hour"] == 3.5
    assert rows[1]["hyperparameters"]["lora_dropout"] == 0.1
    rates = {cost["details"]["price_per_hour"] for cost in stage.rows("select details from cost_records")}
    assert len(rates) == 1


BAD_LINES = b"\n".join([*(json.dumps(LINE).encode() for _ in range(16)), b'{"messages": [', json.dumps(LINE).encode()])


@pytest.mark.parametrize(
    ("dataset", "job", "words"),
    [
        ({"content": None}, {}, ["not in the storage", "upload"]),
        ({"content": b" \n"}, {}, ["empty"]),
        ({"content": BAD_LINES}, {"max_bad_line_share": 0}, ["Line 17", "JSON"]),
        ({"content": b'{"messages": [{"role": "user", "content": "only asked"}]}\n'}, {}, ["Line 1"]),
        ({}, {"epochs": 0}, ["epochs", "0", "greater than or equal to 1"]),
        ({}, {"batch_size": 0}, ["batch_size", "0"]),
        ({}, {"rank": 3}, ["rank", "3", "4"]),
        ({}, {"learning_rate": 5}, ["learning_rate", "5"]),
        ({}, {"base_model": "nobody/nothing"}, ["nobody/nothing", BASE]),
        ({"status": "uploading", "training_ready": False}, {}, ["not ready", "uploading"]),
        ({"deleted_at": "2026-01-01"}, {}, ["deleted"]),
        ({}, {"gpu": {"type": "Abacus", "count": 1}}, ["Abacus"]),
        ({}, {"gpu": {"type": "H100", "count": 0}}, ["count", "0"]),
    ],
    ids=["missing", "empty", "line-17", "no-pair", "epochs", "batch", "rank", "rate", "base", "not-ready", "deleted",
         "gpu", "no-gpu"],
)  # fmt: skip
def test_bad_input_fails_with_one_sentence_before_a_gpu_is_paid_for(
    stage: Stage, dataset: dict[str, Any], job: dict[str, Any], words: list[str]
) -> None:
    before = stage.launches()
    job_id = stage.job(stage.dataset(**dataset), **job)
    assert stage.worker("--once").wait(30) == 0, stage.log()
    row = stage.read(job_id)
    assert row["status"] == "failed"
    assert row["completed_at"] is not None
    assert row["error_stack"] is None
    for word in words:
        assert word in row["error_message"], row["error_message"]
    assert "\n" not in row["error_message"]
    assert "Zebrafinch" not in row["error_message"]
    assert stage.launches() == before
    assert stage.rows("select * from cost_records where job_id = %s", job_id) == []


def test_sigterm_releases_the_run_and_the_next_worker_finishes_it_without_a_new_launch(stage: Stage) -> None:
    before = stage.launches()
    job_id = stage.job(max_steps=100)
    first = stage.worker()
    stage.until(job_id, lambda row: (row["current_step"] or 0) > 3)
    assert stage.stop(first) == 0
    (run,) = stage.rows("select *, lease_expires_at <= now() as free from training_runs where job_id = %s", job_id)
    assert run["free"]
    assert run["worker"] is None
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert stage.launches() == before + 1
    assert len(stage.rows("select * from training_runs where job_id = %s", job_id)) == 1


def test_a_killed_workers_run_is_adopted_and_finished(stage: Stage) -> None:
    before = stage.launches()
    job_id = stage.job(max_steps=60)
    first = stage.worker()
    stage.until(job_id, lambda row: (row["current_step"] or 0) > 1)
    first.kill()
    first.wait()
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert stage.launches() == before + 1


def test_passes_from_cron_bring_a_job_to_its_end(stage: Stage) -> None:
    job_id = stage.job(max_steps=5)
    for _ in range(25):
        assert stage.worker("--once").wait(30) == 0, stage.log()
        if stage.read(job_id)["status"] in ENDED:
            break
        time.sleep(0.3)
    assert stage.read(job_id)["status"] == "completed"
    assert stage.rows("select * from training_runs where status in ('claimed', 'launched', 'running')") == []


@pytest.mark.parametrize("how", ["plain update", "function"])
def test_cancelling_stops_the_gpu_and_bills_what_it_used(stage: Stage, how: str) -> None:
    job_id = stage.job(seed=int(Mishap.ENDLESS))
    stage.worker()
    stage.until(job_id, lambda row: (row["current_step"] or 0) > 3)
    if how == "plain update":
        stage.service.patch(f"/rest/v1/training_jobs?id=eq.{job_id}", json={"status": "cancelled"}).raise_for_status()
    else:
        with stage.project.client(stage.user) as client:
            answer = client.post("/rest/v1/rpc/cancel_training_job", json={"job_id": job_id})
            assert answer.json() is True
    stage.until(job_id, lambda row: bool(stage.rows("select 1 from cost_records where job_id = %s", row["id"])))
    row = stage.read(job_id)
    assert row["status"] == "cancelled"
    assert row["final_cost"] is not None
    (run,) = stage.rows("select * from training_runs where job_id = %s", job_id)
    assert run["status"] == "cancelled"
    # RunPod says CANCELLED at once; the process may take a moment to save and end.
    stage.until(job_id, lambda _: all(e.run_id != str(run["id"]) for e in stage.runpod.orphans()))
    assert [n["type"] for n in stage.rows("select type from notifications where user_id = %s", stage.user)].count(
        "job_cancelled"
    ) == 1
    assert stage.read(job_id)["status"] == "cancelled"


def test_a_job_cancelled_in_the_queue_is_never_launched(stage: Stage) -> None:
    before = stage.launches()
    job_id = stage.job()
    stage.rows("update training_jobs set status = 'cancelled' where id = %s", job_id)
    assert stage.worker("--once").wait(30) == 0
    assert stage.launches() == before
    assert stage.read(job_id)["status"] == "cancelled"


def test_a_launch_whose_answer_was_lost_trains_once(stage: Stage) -> None:
    stage.runpod.faults.add("run", "drop_answer")
    job_id = stage.job(max_steps=10)
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert runs_trained_twice(read_steps(stage.runpod.steps)) == set()  # type: ignore[attr-defined]


def test_a_launch_delivered_to_two_workers_trains_once(stage: Stage) -> None:
    stage.runpod.faults.add("dispatch", "deliver_twice")
    job_id = stage.job(max_steps=30)
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert runs_trained_twice(read_steps(stage.runpod.steps)) == set()  # type: ignore[attr-defined]
    assert len(stage.rows("select * from cost_records where job_id = %s", job_id)) == 1


def test_a_crashing_trainer_is_retried_and_then_fails_with_a_sentence(stage: Stage) -> None:
    job_id = stage.job(seed=int(Mishap.CRASH))
    stage.worker(LORA_WORKER_MAX_ATTEMPTS="2")
    row = stage.ended(job_id)
    assert row["status"] == "failed"
    assert "2 attempts" in row["error_message"]
    runs = stage.rows("select * from training_runs where job_id = %s order by attempt", job_id)
    assert [run["fault"] for run in runs] == ["transient", "transient"]
    assert len(stage.rows("select * from cost_records where job_id = %s", job_id)) == 2
    assert row["retry_count"] == 1


def test_a_result_that_runpod_forgot_is_found_in_the_storage(stage: Stage) -> None:
    job_id = stage.job(max_steps=40)
    first = stage.worker()
    stage.until(job_id, lambda row: row["current_stage"] == "uploading")
    (run,) = stage.rows("select * from training_runs where job_id = %s", job_id)
    deadline = time.monotonic() + 30
    prefix = f"/storage/v1/object/lora-models/{stage.user}/{run['id']}/manifest.json"
    while stage.service.get(prefix).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if stage.read(job_id)["status"] != "completed":
        first.kill()
        first.wait()
        stage.runpod.forget(run["external_job_id"])
        stage.worker()
    assert stage.ended(job_id)["status"] == "completed"


def test_no_key_token_or_text_of_the_dataset_is_logged_or_stored(stage: Stage) -> None:
    job_id = stage.job(max_steps=5)
    stage.worker(LORA_WORKER_LOG_LEVEL="debug")
    assert stage.ended(job_id)["status"] == "completed"
    written = stage.log()
    for table in ("training_jobs", "training_runs", "training_launches", "metrics_points", "model_artifacts",
                  "cost_records", "notifications"):  # fmt: skip
        written += json.dumps(stage.rows(f"select * from {table}"), default=str)
    external = stage.read(job_id)["external_job_id"]
    headers = {"Authorization": f"Bearer {stage.runpod.api_key}"}
    written += httpx.get(f"{stage.runpod.api_url}/status/{external}", headers=headers).text
    for secret in (stage.project.secret_key, stage.project.publishable_key, stage.runpod.api_key, "Zebrafinch",
                   "token=", "/object/sign/", "/object/upload/sign/"):  # fmt: skip
        assert secret not in written


def test_bad_settings_are_named_and_exit_with_2(stage: Stage) -> None:
    environment = {k: v for k, v in stage.environment().items() if k != "SUPABASE_SERVICE_ROLE_KEY"}
    environment["LORA_WORKER_SLOTS"] = "many"
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "run"], env=environment, capture_output=True, text=True, cwd=stage.folder
    )
    assert done.returncode == 2
    assert "SUPABASE_SERVICE_ROLE_KEY" in done.stderr
    assert "LORA_WORKER_SLOTS" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_supabase_is_said_and_the_daemon_goes_on_trying(stage: Stage) -> None:
    nowhere = {"SUPABASE_URL": "http://127.0.0.1:9"}
    once = subprocess.run(
        [sys.executable, "-m", "worker.cli", "run", "--once"],
        env=stage.environment(**nowhere), capture_output=True, text=True, cwd=stage.folder,
    )  # fmt: skip
    assert once.returncode == 1
    assert "not reachable" in once.stderr
    assert "Traceback" not in once.stderr
    daemon = stage.worker(**nowhere)
    deadline = time.monotonic() + 20
    while stage.log().count("not reachable") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert daemon.poll() is None
    assert stage.stop(daemon) == 0
