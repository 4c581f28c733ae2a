"""The stand-in for the training, run by the trainer's real handler in a real worker of the SDK."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lora_contract.grants import seal_urls
from lora_contract.protocol import Manifest, Progress, Result
from lora_trainer.run.answers import CheckIn, UploadGrant
from sandbox.processes import free_ports
from sandbox.runpod import LocalRunPod, Outcome
from sandbox.standin import Mishap, read_steps, runs_trained_twice, standin_env
from tests.processes.waiting import awaited, until

TOKEN = "t" * 43
DATASET = b'{"messages": []}\n'


class Project:
    """The parts of a Supabase project that the trainer calls, over real HTTP. `cancelled` holds RunPod's job ids."""

    def __init__(self) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.uploads: dict[str, bytes] = {}
        self.cancelled: set[str] = set()
        self._requested: list[dict[str, Any]] = []
        routes = [
            Route("/rest/v1/rpc/check_in_run", self._check_in, methods=["POST"]),
            Route("/rest/v1/rpc/request_upload", self._request_upload, methods=["POST"]),
            Route("/rest/v1/rpc/upload_grant", self._grant, methods=["POST"]),
            Route("/dataset", lambda _: Response(DATASET)),
            Route("/upload/{path:path}", self._upload, methods=["PUT"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), host="127.0.0.1", port=port, log_level="critical", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))

    def __enter__(self) -> Project:
        self._thread.start()
        until(lambda: self._server.started, "the server listens")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def _check_in(self, request: Request) -> Response:
        if (await request.json())["external_job_id"] in self.cancelled:
            return _answer(CheckIn(may_train=False, reason="cancelled"))
        return _answer(CheckIn(may_train=True, reason="ok"))

    async def _request_upload(self, request: Request) -> Response:
        self._requested = (await request.json())["files"]
        return JSONResponse({"ok": True, "reason": None})

    async def _grant(self, _: Request) -> Response:
        paths = [file["path"] for file in self._requested] + ["manifest.json"]
        sealed = seal_urls(TOKEN, {path: f"{self.url}/upload/{path}" for path in paths})
        return _answer(UploadGrant(granted=True, sealed=sealed))

    async def _upload(self, request: Request) -> Response:
        self.uploads[request.path_params["path"]] = await request.body()
        return JSONResponse({})


def _answer(model: CheckIn | UploadGrant) -> Response:
    return JSONResponse(model.model_dump(mode="json"))


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("volume")


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    with Project() as project:
        yield project


@pytest.fixture(scope="module")
def runpod(volume: Path) -> Iterator[LocalRunPod]:
    with LocalRunPod.start(workers_max=1, env=standin_env(volume)) as runpod:
        yield runpod


@pytest.fixture
def http(runpod: LocalRunPod) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {runpod.api_key}"}
    with httpx.Client(base_url=runpod.api_url, headers=headers, trust_env=False, timeout=30) as client:
        yield client


class Launches:
    """Launches runs on the endpoint and reads their state."""

    def __init__(self, http: httpx.Client, project: Project) -> None:
        self._http = http
        self._project = project

    def run(self, name: str, seed: int = 42, steps: int = 20) -> str:
        given = {
            "job_id": f"job-{name}",
            "run_id": f"run-{name}",
            "dataset": {"url": f"{self._project.url}/dataset", "sha256": hashlib.sha256(DATASET).hexdigest()},
            "hyperparameters": {"base_model": "none", "max_steps": steps, "seed": seed},
            "gpu_config": {},
            "channel": {"url": self._project.url, "key": "sb_publishable_x", "token": TOKEN},
            "output": {"bucket": "lora-models", "prefix": f"user/run-{name}/"},
            "limits": {"max_seconds": 600},
        }
        return str(self._http.post("/run", json={"input": given}).raise_for_status().json()["id"])

    def answer(self, job_id: str) -> dict[str, Any]:
        return dict(self._http.get(f"/status/{job_id}").raise_for_status().json())

    def end_of(self, job_id: str) -> dict[str, Any]:
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
        return awaited(lambda: self.answer(job_id), "the job ends", fits=lambda answer: answer["status"] in over)

    def until_training(self, job_id: str) -> Progress:
        def probe() -> Progress | None:
            output = self.answer(job_id).get("output")
            progress = Progress.model_validate(output) if output else None
            return progress if progress is not None and progress.current_step > 0 else None

        return awaited(probe, "a step is trained")


def error_code(answer: dict[str, Any]) -> str:
    error = Result.model_validate(answer["output"]).error
    assert error is not None
    return error.code


@pytest.fixture
def launches(http: httpx.Client, project: Project) -> Launches:
    return Launches(http, project)


def test_a_run_publishes_its_files_and_the_manifest_last(launches: Launches, project: Project) -> None:
    answer = launches.end_of(launches.run("good"))
    result = Result.model_validate(answer["output"])
    assert (answer["status"], result.status) == ("COMPLETED", "completed")
    assert [*project.uploads][-1] == "manifest.json"
    manifest = Manifest.model_validate_json(project.uploads["manifest.json"])
    assert manifest.run_id == "run-good"
    assert [point.step for point in manifest.points] == list(range(1, 21))
    for file in manifest.files:
        assert hashlib.sha256(project.uploads[file.path]).hexdigest() == file.sha256


def test_a_cancel_stops_the_training(launches: Launches, http: httpx.Client, runpod: LocalRunPod, volume: Path) -> None:
    job_id = launches.run("cancelled", Mishap.ENDLESS)
    launches.until_training(job_id)
    http.post(f"/cancel/{job_id}").raise_for_status()
    (execution,) = runpod.ledger.executions_of(job_id)
    assert awaited(lambda: execution.outcome, "the execution ends") is Outcome.STOPPED
    assert max(step.step for step in read_steps(volume / "steps.jsonl") if step.run_id == "run-cancelled") <= 10


def test_lost_fence_stops_the_training(launches: Launches, project: Project) -> None:
    job_id = launches.run("fenced", Mishap.ENDLESS)
    launches.until_training(job_id)
    project.cancelled.add(job_id)
    answer = launches.end_of(job_id)
    assert (answer["status"], error_code(answer)) == ("FAILED", "cancelled")


@pytest.mark.parametrize(
    ("mishap", "code"), [(Mishap.CRASH, "child_crashed"), (Mishap.LOSS_NOT_FINITE, "loss_not_finite")]
)
def test_failed_training_fails_the_job_with_its_reason(launches: Launches, mishap: Mishap, code: str) -> None:
    answer = launches.end_of(launches.run(mishap.name, mishap))
    assert (answer["status"], error_code(answer)) == ("FAILED", code)


def test_crashed_training_resumes_from_its_checkpoint(launches: Launches, volume: Path) -> None:
    assert launches.end_of(launches.run("again", Mishap.CRASH_ONCE))["status"] == "FAILED"
    result = Result.model_validate(launches.end_of(launches.run("again", Mishap.CRASH_ONCE))["output"])
    assert result.summary.resumed_from_step == 5
    assert runs_trained_twice(read_steps(volume / "steps.jsonl")) == set()


def test_a_job_that_kills_its_worker_fails_after_runpods_own_retry(launches: Launches) -> None:
    answer = launches.end_of(launches.run("poison", Mishap.KILL_WORKER))
    assert (answer["status"], answer["error"]) == ("FAILED", "job timed out after 1 retries")


def test_a_crash_point_in_a_worker_strikes_once(launches: Launches, runpod: LocalRunPod) -> None:
    runpod.replace_workers({"LORA_CRASH": "trainer.upload.before_manifest=kill"})
    answer = launches.end_of(job_id := launches.run("struck"))
    assert (answer["status"], answer["retries"]) == ("COMPLETED", 1)
    assert [execution.outcome for execution in runpod.ledger.executions_of(job_id)] == [
        Outcome.LOST,
        Outcome.COMPLETED,
    ]
