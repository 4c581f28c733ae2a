"""A stand-in for SkyPilot's API server and its managed jobs: strict, and each job's machine is a process here.

Routes, headers, bodies and records are those of SkyPilot 0.14.1, recorded from its own server and SDK:

    GET  /api/health      POST /validate      POST /jobs/launch      POST /jobs/queue/v2      POST /jobs/cancel
    GET  /api/get?request_id=…    the outcome of each of these requests, as `RequestPayload`

The real SDK speaks with it, too (`LORA_TEST_SKYPILOT_PYTHON`, see `tests/integration/launchers/skypilot_scene.py`).
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.processes.reopened import ReopenedPort

TOKEN = "sky_token-of-the-tests"
API_VERSION, VERSION = "62", "0.14.1"
ENDED = {"SUCCEEDED", "CANCELLED", "FAILED", "FAILED_NO_RESOURCE", "FAILED_PRECHECKS", "FAILED_CONTROLLER"}
_TASK_KEYS = {
    "name", "resources", "num_nodes", "run", "envs", "secrets", "file_mounts", "file_mounts_mapping", "volumes",
    "_user_specified_yaml",
}  # fmt: skip
_RESOURCE_KEYS = {"accelerators", "image_id", "disk_size", "use_spot", "any_of", "infra", "_requires_fuse"}
_LAUNCH_KEYS = {"task", "name"}
_QUEUE_KEYS = {"refresh", "skip_finished", "all_users", "name_match", "limit", "fields", "sort_by", "sort_order"}
_CANCEL_KEYS = {"job_ids"}
_BASE_KEYS = {
    "env_vars", "entrypoint", "entrypoint_command", "using_remote_api_server", "override_skypilot_config",
    "override_skypilot_config_path", "file_mounts_blob_id", "client_api_version", "workspace_access",
}  # fmt: skip
_NOTHING = base64.b64encode(pickle.dumps(None)).decode()


@dataclass
class ManagedJob:
    """One managed job."""

    job_id: int
    name: str
    task: dict[str, Any]
    made_at: float = field(default_factory=time.time)
    starts: int = 0
    status: str = "PENDING"
    schedule_state: str = "WAITING"
    submitted_at: float | None = None
    start_at: float | None = None
    end_at: float | None = None
    failure_reason: str | None = None
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    is_preempted: threading.Event = field(default_factory=threading.Event)
    process: subprocess.Popen[bytes] | None = None

    def record(self) -> dict[str, Any]:
        """It, as the queue has it."""
        until = self.end_at or time.time()
        return {
            "job_id": self.job_id,
            "task_id": 0,
            "job_name": self.name,
            "status": self.status,
            "job_duration": until - self.start_at if self.start_at else 0.0,
            "schedule_state": self.schedule_state,
            "submitted_at": self.submitted_at,
            "start_at": self.start_at,
            "end_at": self.end_at,
            "failure_reason": self.failure_reason,
        }


class SkyPilotServer(ReopenedPort):
    """An API server with `machines` machines, whose trainer is `module`; its limits of time are `speed` times shorter.

    `faults` are used up in their order by the launches that come: "lose_answer" (accepted, the connection breaks),
    "break_off" (the job is written down and never queued, as when the server fails half-way), "no_resource",
    "refuse" (the task is refused before it is sent).

    `image_environment` is what the image sets. Buckets and volumes that are mounted are folders in `mounts` below
    `folder`, and what the machines of a job print is in `<its number>.log`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        module: str,
        machines: int = 1,
        speed: float = 1.0,
        image_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._image_environment = image_environment or {}
        self.lists_lag_seconds = 0.0
        """Queues do not show jobs yet that are younger."""
        self.faults: list[str] = []
        self.jobs: dict[int, ManagedJob] = {}
        self.calls: list[str] = []
        self.problems: list[str] = []
        """What the client sent wrong: closing fails with it."""
        self._speed = speed
        self._machines = threading.Semaphore(machines)
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._paths: dict[str, str] = {}
        self._lock = threading.Lock()
        self._bin = folder / "bin"
        self._bin.mkdir()
        python = self._bin / "python"
        python.write_text(
            '#!/bin/sh\n[ "$*" = "-u -m lora_trainer.machine" ] || exit 99\n'
            f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))} exec {sys.executable} -u -m {module}\n"
        )
        python.chmod(0o755)
        self._listen()
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """End it, with all that runs there."""
        self._hang_up()
        for job in list(self.jobs.values()):
            self._end(job)
        assert not self.problems, self.problems

    def named(self, name: str) -> ManagedJob:
        """The only job of this name."""
        (job,) = [job for job in self.jobs.values() if job.name == name]
        return job

    def path_of(self, request_id: str) -> str:
        """The route of a request whose outcome is fetched; "" for an unknown one."""
        return self._paths.get(request_id, "")

    def living(self) -> list[ManagedJob]:
        """The jobs that have not ended."""
        return [job for job in list(self.jobs.values()) if job.status not in ENDED]

    def working(self) -> list[ManagedJob]:
        """Those of them that have a machine, which nobody ends at the moment."""
        return [
            job
            for job in self.living()
            if job.process is not None
            and job.process.poll() is None
            and not job.is_cancelled.is_set()
            and not job.is_preempted.is_set()
        ]

    def preempt(self, name: str) -> None:
        """Take away the machine of a job; it gets another."""
        job = self.named(name)
        job.is_preempted.set()
        _kill(job)

    # What the routes do.

    def answer(self, method: str, target: str, token: str, body: dict[str, Any]) -> tuple[int, Any, str | None]:
        """The answer to a request: its status, its body, and the id under which its outcome is asked for."""
        parts = urlsplit(target)
        self.calls.append(parts.path)
        if token != f"Bearer {TOKEN}":
            return 401, {"detail": "Invalid service account token"}, None
        if parts.path == "/api/health":
            return 200, {"status": "healthy", "api_version": API_VERSION, "version": VERSION, "commit": "0",
                         "version_on_disk": VERSION, "basic_auth_enabled": False, "user": None}, None  # fmt: skip
        if parts.path == "/api/get":
            request_id = parse_qs(parts.query)["request_id"][0]
            outcome = self._outcomes.get(request_id)
            if outcome is None:
                return 404, {"detail": f"Request {request_id!r} not found"}, None
            return (200, outcome, None) if outcome["error"] == "null" else (500, {"detail": outcome}, None)
        if parts.path == "/validate":
            return self._validate(body)
        routes = {"/jobs/launch": self._launch, "/jobs/queue/v2": self._queue, "/jobs/cancel": self._cancel}
        return 200, None, self._carry_out(parts.path, routes[parts.path], body)

    def _validate(self, body: dict[str, Any]) -> tuple[int, Any, None]:
        task = _task_in(body["dag"])
        fault = _fault_of(task)
        if fault is None and self.faults[:1] == ["refuse"]:
            self.faults.pop(0)
            fault = "Volume lora not found."
        if fault:
            return 400, {"detail": {"type": "ValueError", "message": fault, "args": [fault], "attributes": {},
                                    "stacktrace": None}}, None  # fmt: skip
        return 200, None, None

    def _carry_out(self, path: str, work: Any, body: dict[str, Any]) -> str:
        request_id = str(uuid.uuid4())
        name = {"/jobs/launch": "sky.jobs.launch", "/jobs/queue/v2": "sky.jobs.queue_v2"}.get(path, "sky.jobs.cancel")
        outcome = {"request_id": request_id, "name": name, "entrypoint": _NOTHING, "request_body": _NOTHING,
                   "status": "SUCCEEDED", "created_at": time.time(), "user_id": "0", "return_value": "null",
                   "error": "null", "pid": 1, "schedule_type": "short"}  # fmt: skip
        try:
            outcome["return_value"] = json.dumps(work(body))
        except RuntimeError as error:
            found = {"type": "RuntimeError", "message": str(error), "args": [str(error)], "attributes": {},
                     "stacktrace": None}  # fmt: skip
            packed = base64.b64encode(pickle.dumps(found)).decode()
            outcome |= {"status": "FAILED", "error": json.dumps({"object": packed, "type": "RuntimeError",
                                                                 "message": str(error)})}  # fmt: skip
        self._outcomes[request_id], self._paths[request_id] = outcome, path
        return request_id

    def _launch(self, body: dict[str, Any]) -> dict[str, Any]:
        _only(body, _LAUNCH_KEYS)
        task = _task_in(body["task"])
        assert _fault_of(task) is None, _fault_of(task)
        fault = self.faults.pop(0) if self.faults else None
        with self._lock:
            job = ManagedJob(len(self.jobs) + 1, body["name"], task)
            self.jobs[job.job_id] = job
        if fault == "break_off":
            job.schedule_state = "INACTIVE"
            raise RuntimeError("Command rsync failed with return code 127.")
        if fault == "no_resource":
            job.submitted_at = job.end_at = time.time()
            job.status, job.failure_reason = "FAILED_NO_RESOURCE", "No resource in any zone."
            return {"job_id": [job.job_id], "handle": None}
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        if fault == "lose_answer":
            raise ConnectionAbortedError
        return {"job_id": [job.job_id], "handle": None}

    def _queue(self, body: dict[str, Any]) -> dict[str, Any]:
        _only(body, _QUEUE_KEYS)
        assert (body["refresh"], body["all_users"]) == (False, True)
        assert (body["sort_by"], body["sort_order"]) == ("job_id", "desc")
        shown_before = time.time() - self.lists_lag_seconds
        jobs = [job for job in list(self.jobs.values()) if job.made_at <= shown_before]
        found = [job for job in jobs if body["name_match"] in job.name]
        found = sorted(found, key=lambda job: -job.job_id)[: body["limit"]]
        kept = [{key: value for key, value in job.record().items() if key in body["fields"]} for job in found]
        return {"jobs": kept, "total": len(kept), "total_no_filter": len(self.jobs), "status_counts": {}}

    def _cancel(self, body: dict[str, Any]) -> None:
        _only(body, _CANCEL_KEYS)
        for job_id in body["job_ids"]:
            self._end(self.jobs[job_id])

    # What becomes of a job.

    def _end(self, job: ManagedJob) -> None:
        job.is_cancelled.set()
        if job.schedule_state == "INACTIVE":
            job.status, job.end_at = "CANCELLED", time.time()
        elif job.status not in ENDED:
            job.status = "CANCELLING"
        _kill(job)

    def _run(self, job: ManagedJob) -> None:
        job.submitted_at, job.status, job.schedule_state = time.time(), "STARTING", "LAUNCHING"
        while not self._machines.acquire(timeout=0.02):
            if job.is_cancelled.is_set():
                job.status, job.end_at = "CANCELLED", time.time()
                return
        try:
            code = self._work(job)
        finally:
            self._machines.release()
        job.end_at = time.time()
        if job.is_cancelled.is_set():
            job.status = "CANCELLED"
        elif code == 0:
            job.status = "SUCCEEDED"
        else:
            job.failure_reason = (
                f"Job exited with exit code {code} (user program failure). "
                f"To see the details, run: sky jobs logs --controller {job.job_id}"
            )
            job.status = "FAILED"

    def _work(self, job: ManagedJob) -> int:
        """Run the task's command, again on another machine when that is taken away; its exit status."""
        while True:
            code = self._start(job)
            if job.is_cancelled.is_set() or not job.is_preempted.is_set():
                return code
            job.is_preempted.clear()
            job.status = "RECOVERING"

    def _start(self, job: ManagedJob) -> int:
        task = job.task
        numbers = {"SKYPILOT_MANAGED_JOB_ID": str(job.job_id), "SKYPILOT_NUM_GPUS_PER_NODE": "1"}
        given = {**self._image_environment, **self._mounted(task), **task["secrets"], **numbers}
        environment = {**given, "PATH": f"{self._bin}:{os.environ['PATH']}"}
        run = re.sub(r"(?<=--kill-after=120 )([0-9]+)", lambda found: str(int(found[1]) / self._speed), task["run"])
        # `timeout` would have a process group of its own, which outlives the machine that is taken away here.
        run = run.replace("timeout ", "timeout --foreground ", 1)
        job.starts += 1
        with (self.folder / f"{job.job_id}.log").open("ab") as log:
            job.process = subprocess.Popen(
                ["/bin/bash", "-c", run],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        job.status, job.start_at = "RUNNING", job.start_at or time.time()
        if job.is_cancelled.is_set():
            _kill(job)
        return job.process.wait()

    def _mounted(self, task: dict[str, Any]) -> dict[str, str]:
        """The task's variables, with folders of this machine for what is mounted."""
        mounts = [*(task.get("file_mounts") or {}), *(task.get("volumes") or {})]
        folders = {path: self.folder / "mounts" / path.strip("/") for path in mounts}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        return {name: str(folders.get(value, value)) for name, value in task["envs"].items()}

    # The connection.

    def _listen(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _do(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(content) if content else {}
                try:
                    status, value, request_id = server.answer(
                        self.command, self.path, self.headers.get("Authorization", ""), body
                    )
                except ConnectionAbortedError:
                    self.close_connection = True
                    return
                answer = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.send_header("X-SkyPilot-API-Version", API_VERSION)
                self.send_header("X-SkyPilot-Version", VERSION)
                self.send_header("X-Skypilot-Request-ID", request_id or str(uuid.uuid4()))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = _do

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                """A client that goes away is no error of the server; what it should not have sent is one."""
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    server.problems.append(traceback.format_exc())

        self._open(Handler, Listener)


def _task_in(text: str) -> dict[str, Any]:
    """The only task of a DAG in YAML: a document with its name, and one for each task."""
    head, task = list(yaml.safe_load_all(text))
    assert set(head) == {"name"}, head
    return dict(task)


def _fault_of(task: dict[str, Any]) -> str | None:
    """Why SkyPilot would refuse a task; None if it would not."""
    unknown = set(task) - _TASK_KEYS
    if unknown:
        return f"Additional properties are not allowed: {unknown}"
    for secret in task["secrets"].values():
        assert len(secret) < 8 or secret not in task.get("_user_specified_yaml", ""), (
            "the user's own file holds a secret"
        )
    resources = task["resources"]
    each = resources.get("any_of") or [resources]
    for one in each:
        if set(one) - _RESOURCE_KEYS:
            return f"Additional properties are not allowed: {set(one) - _RESOURCE_KEYS}"
    for mount in (task.get("file_mounts") or {}).values():
        source = urlsplit(mount["source"])
        if len(source.path.strip("/").split("/")) > 1 or bool(source.path.strip("/")) != (source.scheme == "cos"):
            return "MOUNT mode does not support mounting specific files from cloud storage."
    if any(not isinstance(value, str) for value in task["envs"].values()):
        return "envs are text"
    return None


def _only(body: dict[str, Any], keys: set[str]) -> None:
    """The body sets nothing but these keys; others are there without a value."""
    unknown = {key for key, value in body.items() if key not in keys | _BASE_KEYS and value not in (None, False)}
    assert not unknown, unknown


def _kill(job: ManagedJob) -> None:
    if job.process is not None and job.process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
