"""A RunPod on which every job runs until the test ends it, with much progress; and the test as one job's trainer."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx

from lora_contract.application import Application
from lora_contract.grants import open_urls
from lora_contract.protocol import ArtifactFile, FinalMetrics, Manifest, Result, Summary
from sandbox.runpod import Faults
from sandbox.standin_proof import applied
from tests.processes.serving import serving
from tests.processes.waiting import awaited

_POINTS = 100
_CHUNK = bytes(range(256)) * 4096
"""A megabyte."""


class Crowd:
    """The jobs of the endpoint. The part of `LocalRunPod` that a `Stage` needs."""

    api_key = "rpa_crowd"

    def __init__(self, url: str) -> None:
        self.api_url = f"{url}/v2/crowd"
        self.faults = Faults()
        self.inputs: dict[str, dict[str, Any]] = {}
        """The input of each launched job, by RunPod's id."""
        self.looks: dict[str, int] = {}
        """How often the status of each was asked for."""
        self.results: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()

    def orphans(self) -> list[Any]:
        """No job costs anything here."""
        return []

    def launched(self, job_id: str) -> str:
        """Wait until the database's job is launched; returns RunPod's id."""

        def find() -> str | None:
            with self.lock:
                return next((key for key, given in self.inputs.items() if given["job_id"] == job_id), None)

        return awaited(find, "the job is launched")

    def answer(self, method: str, path: str, body: Any) -> dict[str, Any]:
        """RunPod's answer to a call."""
        *_, operation, external_id = ["", *path.removeprefix("/v2/crowd/").split("/")]
        if method == "POST" and external_id == "run":
            key = f"{uuid.uuid4()}-u1"
            with self.lock:
                self.inputs[key] = body["input"]
            return {"id": key, "status": "IN_QUEUE"}
        if operation == "status":
            return self._status(external_id)
        if operation == "cancel":
            return {"id": external_id, "status": "CANCELLED"}
        running = len(self.inputs) - len(self.results)
        jobs = {"completed": 0, "failed": 0, "inProgress": running, "inQueue": 0, "retried": 0}
        workers = {"idle": 0, "initializing": 0, "ready": 0, "running": running, "throttled": 0, "unhealthy": 0}
        return {"jobs": jobs, "workers": workers}

    def _status(self, key: str) -> dict[str, Any]:
        with self.lock:
            self.looks[key] = look = self.looks.get(key, 0) + 1
            given, result = self.inputs[key], self.results.get(key)
        common = {"id": key, "delayTime": 1000, "executionTime": 1000 * look, "workerId": "w1"}
        if result is not None:
            return {**common, "status": "COMPLETED", "output": result}
        return {**common, "status": "IN_PROGRESS", "output": _progress(given["run_id"], look)}

    def publish(self, key: str, bytes_: int) -> None:
        """Be the trainer of a launched job: check in, upload an adapter of so many bytes, and end the job."""
        given = self.inputs[key]
        with httpx.Client(timeout=600, trust_env=False) as http:
            trainer = _Trainer(http, given["channel"])
            trainer.call("check_in_run", external_job_id=key)
            digest = hashlib.sha256()
            for chunk in _adapter(bytes_):
                digest.update(chunk)
            name = "adapter_model.safetensors"
            file = ArtifactFile(name=name, path=name, bytes=bytes_, sha256=digest.hexdigest())
            trainer.call("request_upload", files=[file.model_dump()])
            grant = awaited(
                lambda: trainer.call("upload_grant"), "the upload is granted", fits=lambda answer: answer["granted"]
            )
            urls = open_urls(given["channel"]["token"], grant["sealed"])
            manifest = Manifest(
                job_id=given["job_id"],
                run_id=given["run_id"],
                files=[file],
                application=Application.model_validate(applied(file.sha256)),
                metrics=FinalMetrics(final_training_loss=1.5),
                summary=Summary(total_steps=_POINTS, gpu_type="NVIDIA A100 80GB PCIe", gpu_count=1),
            )
            trainer.upload(urls[name], _adapter(bytes_), bytes_)
            content = manifest.model_dump_json(exclude_none=True).encode()
            trainer.upload(urls["manifest.json"], iter([content]), len(content), "application/json")
        with self.lock:
            self.results[key] = Result(run_id=given["run_id"], status="completed").as_output()


class _Trainer:
    def __init__(self, http: httpx.Client, channel: dict[str, Any]) -> None:
        self._http, self._channel, self._execution_id = http, channel, str(uuid.uuid4())

    def call(self, function: str, **arguments: Any) -> dict[str, Any]:
        answer = self._http.post(
            f"{self._channel['url']}/rest/v1/rpc/{function}",
            headers={"apikey": self._channel["key"]},
            json={"token": self._channel["token"], "execution_id": self._execution_id, **arguments},
        )
        answer.raise_for_status()
        return dict(answer.json())

    def upload(self, url: str, chunks: Iterator[bytes], bytes_: int, kind: str = "application/octet-stream") -> None:
        headers = {"content-type": kind, "x-upsert": "true", "content-length": str(bytes_)}
        self._http.put(url, content=chunks, headers=headers).raise_for_status()


def _adapter(bytes_: int) -> Iterator[bytes]:
    whole, rest = divmod(bytes_, len(_CHUNK))
    for _ in range(whole):
        yield _CHUNK
    yield _CHUNK[:rest]


def _progress(run_id: str, look: int) -> dict[str, Any]:
    steps = range(look, look + _POINTS)
    points = [
        {"step": step, "epoch": step / 1000, "training_loss": 1.2345678, "learning_rate": 1e-4, "throughput": 1234.5,
         "gradient_norm": 0.1234567, "gpu_utilization": 99.0, "gpu_memory_bytes": 79_999_999_999,
         "timestamp": time.time()}
        for step in steps
    ]  # fmt: skip
    return {
        "run_id": run_id,
        "proves": True,
        "stage": "training",
        "progress": 50,
        "current_step": steps[-1],
        "total_steps": 10_000,
        "points": points,
    }


@contextmanager
def crowded() -> Iterator[Crowd]:
    """Serve such a RunPod while the context is open."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer = json.dumps(crowd.answer(self.command, self.path, json.loads(body) if body else None)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with serving(Handler) as url:
        crowd = Crowd(url)
        yield crowd
