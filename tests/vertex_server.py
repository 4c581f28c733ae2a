"""A stand-in for Vertex AI's custom jobs and Google's token service: strict, and each job is a process of this machine.

Requests are parsed, and answers written, by the messages of Google's own client (`CustomJob` of
`google.cloud.aiplatform_v1`), so unknown fields, wrong names of enums and malformed durations are refused as Google
refuses them. Machine types, filters and the texts of errors are as Google's pages have them (docs/vertex.md).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from google.cloud.aiplatform_v1.types import AcceleratorType, CustomJob, JobState
from google.protobuf import json_format

from tests.processes.reopened import ReopenedPort
from tests.project import ROOT

PROJECT, REGION = "tests-project", "us-central1"
COMMAND = ["python", "-u", "-m", "lora_trainer.machine"]
MACHINES = {
    "NVIDIA_H100_80GB": {f"a3-highgpu-{count}g": count for count in (1, 2, 4, 8)},
    "NVIDIA_H100_MEGA_80GB": {"a3-megagpu-8g": 8},
    "NVIDIA_H200_141GB": {"a3-ultragpu-8g": 8},
    "NVIDIA_B200": {"a4-highgpu-8g": 8},
    "NVIDIA_A100_80GB": {f"a2-ultragpu-{count}g": count for count in (1, 2, 4, 8)},
    "NVIDIA_TESLA_A100": {f"a2-highgpu-{count}g": count for count in (1, 2, 4, 8)} | {"a2-megagpu-16g": 16},
    "NVIDIA_L4": {
        "g2-standard-4": 1, "g2-standard-8": 1, "g2-standard-12": 1, "g2-standard-16": 1, "g2-standard-32": 1,
        "g2-standard-24": 2, "g2-standard-48": 4, "g2-standard-96": 8,
    },
    "NVIDIA_RTX_PRO_6000": {"g4-standard-48": 1, "g4-standard-96": 2, "g4-standard-192": 4, "g4-standard-384": 8},
}  # fmt: skip
"""Google's table of valid numbers of GPUs for each machine type, without the machines that take any number."""
_ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"}
_STOCKOUT = (
    f"Resources are insufficient in region: {REGION}. Please try a different region or use a different accelerator."
)
_TERM = re.compile(r'(labels\.[a-z_]+|display_name|state|create_time)(=|!=|<=|>=|<|>)"([^"]*)"')
_LOCATION = f"/v1/projects/{PROJECT}/locations/{REGION}"
_MOST_RESTARTS = 6
_STOP_SECONDS = 5


class Refused(Exception):
    """An answer that is no success, as `google.rpc.Status`."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code, self.status = code, status


@dataclass
class Job:
    """A custom job, and the process of its container."""

    proto: Any
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    is_preempted: threading.Event = field(default_factory=threading.Event)

    @property
    def launch_id(self) -> str:
        return str(self.proto.display_name)

    @property
    def state(self) -> str:
        return JobState(self.proto.state).name

    @property
    def environment(self) -> dict[str, str]:
        (pool,) = self.proto.job_spec.worker_pool_specs
        return {variable.name: variable.value for variable in pool.container_spec.env}


class VertexServer(ReopenedPort):
    """One region with `gpus` machines. Its clock is `speed` times as fast as ours.

    `module` runs in each container in place of the trainer's, and `image_environment` is what the image sets. The
    buckets that are mounted at /gcs are folders in `gcs` below `folder`.

    `faults` are used up in their order by the creations that come: "lose_answer" (the job is made, the connection
    breaks), "unavailable" (503, no job), "quota" and "too_many" (429), "forbidden", "disabled" (403), "echo" (400 that
    repeats the container's variables), "stockout" (the job finds no machine).
    """

    def __init__(
        self,
        folder: Path,
        *,
        module: str,
        gpus: int = 1,
        speed: float = 1.0,
        image_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._image_environment = image_environment or {}
        self.faults: list[str] = []
        self.hidden_from_lists = 0
        """So many lists to come do not show the latest job yet."""
        self.lists_lag_seconds = 0.0
        """Lists do not show jobs yet that are younger."""
        self.jobs: dict[str, Job] = {}
        self.tokens: set[str] = set()
        self._module, self._speed = module, speed
        self._machines = threading.Semaphore(gpus)
        self._lock = threading.Lock()
        self._began = (datetime.now(UTC), time.monotonic())
        self._listen()
        self.url = f"http://127.0.0.1:{self.port}"
        self.endpoint = self.url + _LOCATION
        self.key_file, self._public = self._make_key("key.json")
        self.wrong_key_file, _ = self._make_key("wrong-key.json")

    def close(self) -> None:
        """End it, with all that runs there."""
        self._hang_up()
        for job in list(self.jobs.values()):
            job.is_cancelled.set()
        for job in list(self.jobs.values()):
            _stop(job)

    def now(self) -> datetime:
        """The time there."""
        wall, mark = self._began
        return wall + timedelta(seconds=(time.monotonic() - mark) * self._speed)

    def job_of(self, launch_id: str) -> Job:
        """The only job of a launch."""
        (job,) = [job for job in self.jobs.values() if job.proto.display_name == launch_id]
        return job

    def living(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in list(self.jobs.values()) if job.state not in _ENDED]

    def working(self) -> list[Job]:
        """Those of them that have a container, which nobody ends at the moment."""
        return [
            job
            for job in self.living()
            if job.process is not None
            and job.process.poll() is None
            and not job.is_cancelled.is_set()
            and not job.is_preempted.is_set()
        ]

    def preempt(self, launch_id: str) -> None:
        """Take the launch's machine away; it gets another one, and its container is started again."""
        self.job_of(launch_id).is_preempted.set()

    # ── the API ─────────────────────────────────────────────────────────────────────────────────────

    def token(self, form: dict[str, list[str]]) -> dict[str, Any]:
        """An access token for a service account's signed assertion."""
        try:
            claims = jwt.decode(form["assertion"][0], self._public, audience="https://oauth2.googleapis.com/token")
        except ValueError:
            raise Refused(400, "invalid_grant", "Invalid JWT Signature.") from None
        assert "https://www.googleapis.com/auth/cloud-platform" in claims["scope"]
        token = f"ya29.{len(self.tokens)}-{os.urandom(8).hex()}"
        self.tokens.add(token)
        return {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}

    def create(self, body: bytes) -> str | None:
        """Make a job; None where the answer gets lost."""
        fault = self.faults.pop(0) if self.faults else ""
        try:
            proto = json_format.Parse(body, CustomJob.pb()())
        except json_format.ParseError as error:
            raise Refused(400, "INVALID_ARGUMENT", str(error)) from None
        _check(proto)
        if fault in _FAULTS:
            code, status, message = _FAULTS[fault]
            variables = " ".join(v.value for v in proto.job_spec.worker_pool_specs[0].container_spec.env)
            raise Refused(code, status, message.format(variables=variables))
        with self._lock:
            number = str(4_000_000_000_000_000_000 + len(self.jobs))
            proto.name = f"projects/123456789/locations/{REGION}/customJobs/{number}"
            proto.state = JobState.JOB_STATE_QUEUED
            proto.create_time.FromDatetime(self.now())
            job = self.jobs[number] = Job(proto)
        threading.Thread(target=self._live, args=(job, fault == "stockout"), daemon=True).start()
        return None if fault == "lose_answer" else _text(proto)

    def get(self, number: str) -> str:
        """A job."""
        return _text(self._job(number).proto)

    def list(self, query: dict[str, list[str]]) -> str:
        """A page of the jobs that a filter finds, newest first."""
        unknown = set(query) - {"filter", "pageSize", "pageToken", "readMask"}
        if unknown:
            raise Refused(400, "INVALID_ARGUMENT", f"Unknown name {unknown.pop()}: Cannot bind query parameter.")
        fits = _parse_filter(query.get("filter", [""])[0])
        start, size = int(query.get("pageToken", ["0"])[0]), int(query.get("pageSize", ["100"])[0])
        shown_before = self.now() - timedelta(seconds=self.lists_lag_seconds)
        jobs = [job for job in reversed(self.jobs.values()) if job.proto.create_time.ToDatetime(UTC) <= shown_before]
        if self.hidden_from_lists:
            self.hidden_from_lists -= 1
            jobs = jobs[1:]
        found = [job for job in jobs if fits(job)]
        answer: dict[str, Any] = {}
        if page := found[start : start + size]:
            answer["customJobs"] = [json_format.MessageToDict(job.proto) for job in page]
        if len(found) > start + size:
            answer["nextPageToken"] = str(start + size)
        return json.dumps(answer)

    def cancel(self, number: str) -> str:
        """Ask for the end of a job."""
        job = self._job(number)
        with self._lock:
            if job.state in _ENDED:
                message = f"The CustomJob is in state {job.state} and can't be cancelled."
                raise Refused(400, "FAILED_PRECONDITION", message)
            job.proto.state = JobState.JOB_STATE_CANCELLING
            job.is_cancelled.set()
        return "{}"

    def entries(self, body: bytes) -> str:
        """The log entries of a job: its containers' lines, and one of the service at each of its starts."""
        asked = json.loads(body)
        _demand(set(asked) <= {"resourceNames", "filter", "orderBy", "pageSize", "pageToken"}, "unknown field")
        _demand(asked["resourceNames"] == [f"projects/{PROJECT}"], "resourceNames")
        _demand(0 < asked["pageSize"] <= 1000, "pageSize")
        found = re.fullmatch(
            r'resource\.type="ml_job" AND resource\.labels\.job_id="([0-9]+)"( AND timestamp>"(.+)")?', asked["filter"]
        )
        if found is None:
            raise Refused(400, "INVALID_ARGUMENT", "Unparseable filter")
        job = self._job(found[1])
        lines = [("service", f"Start {number}.") for number in range(1, job.starts + 1)]
        path = self.folder / f"{found[1]}.log"
        lines += [("workerpool0-0", line) for line in path.read_text().splitlines()] if path.exists() else []
        created = job.proto.create_time.ToDatetime(UTC)
        entries = [
            {
                "timestamp": (created + timedelta(seconds=second)).isoformat().replace("+00:00", "Z"),
                "resource": {"type": "ml_job", "labels": {"job_id": found[1], "task_name": task}},
                **({"textPayload": text} if task == "service" else {"jsonPayload": {"message": f"{text}\n"}}),
            }
            for second, (task, text) in enumerate(lines)
        ]
        if found[3]:
            since = datetime.fromisoformat(found[3])
            entries = [entry for entry in entries if datetime.fromisoformat(str(entry["timestamp"])) > since]
        if asked["orderBy"] == "timestamp desc":
            entries.reverse()
        return json.dumps({"entries": entries[: asked["pageSize"]]} if entries else {})

    def _job(self, number: str) -> Job:
        if number not in self.jobs:
            raise Refused(404, "NOT_FOUND", f"The CustomJob {number} does not exist.")
        return self.jobs[number]

    # ── a job's life ────────────────────────────────────────────────────────────────────────────────

    def _live(self, job: Job, finds_no_machine: bool) -> None:
        if finds_no_machine:
            self._end(job, JobState.JOB_STATE_FAILED, _STOCKOUT, code=8)
            return
        while not self._machines.acquire(timeout=0.02):
            if job.is_cancelled.is_set():
                self._end(job, JobState.JOB_STATE_CANCELLED)
                return
        try:
            self._work(job)
        finally:
            self._machines.release()

    def _work(self, job: Job) -> None:
        self._set(job, JobState.JOB_STATE_PENDING)
        deadline = time.monotonic() + job.proto.job_spec.scheduling.timeout.ToTimedelta().total_seconds() / self._speed
        self._start_container(job)
        job.proto.start_time.FromDatetime(self.now())
        self._set(job, JobState.JOB_STATE_RUNNING)
        assert job.process is not None
        while (status := job.process.poll()) is None:
            if job.is_preempted.is_set():
                job.is_preempted.clear()
                _stop(job)
                if job.starts > _MOST_RESTARTS:
                    self._end(job, JobState.JOB_STATE_FAILED, _STOCKOUT, code=8)
                    return
                self._start_container(job)
            if job.is_cancelled.is_set() or time.monotonic() > deadline:
                _stop(job)
                self._end(job, JobState.JOB_STATE_CANCELLED)
                return
            time.sleep(0.01)
        if status == 0:
            self._end(job, JobState.JOB_STATE_SUCCEEDED)
            return
        code = 128 - status if status < 0 else status
        text = f"The replica workerpool0-0 exited with a non-zero status of {code}. Termination reason: Error."
        self._end(job, JobState.JOB_STATE_FAILED, text, code=3)

    def _start_container(self, job: Job) -> None:
        (pool,) = job.proto.job_spec.worker_pool_specs
        assert list(pool.container_spec.command) == COMMAND
        own = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        given = {"CLOUD_ML_JOB_ID": job.proto.name.rpartition("/")[2], "CLOUD_ML_PROJECT_ID": PROJECT}
        job.starts += 1
        with (self.folder / f"{given['CLOUD_ML_JOB_ID']}.log").open("ab") as log:
            job.process = subprocess.Popen(
                [sys.executable, "-u", "-m", self._module],
                env={**own, **self._image_environment, **given, **self._mounted(job.environment)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def _mounted(self, environment: dict[str, str]) -> dict[str, str]:
        buckets = f"{self.folder}/gcs/"
        return {name: re.sub("^/gcs/", buckets, value) for name, value in environment.items()}

    def _set(self, job: Job, state: JobState) -> None:
        with self._lock:
            if not job.is_cancelled.is_set():
                job.proto.state = state

    def _end(self, job: Job, state: JobState, message: str = "", *, code: int = 0) -> None:
        with self._lock:
            job.proto.state = state
            job.proto.end_time.FromDatetime(self.now())
            if message:
                job.proto.error.code, job.proto.error.message = code, message

    # ── HTTP ────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        server = self

        class Handler(_Handler):
            vertex = server

        self._open(Handler)

    def _make_key(self, name: str) -> tuple[Path, bytes]:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        path = self.folder / name
        content = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": private.decode(),
            "client_email": f"worker@{PROJECT}.iam.gserviceaccount.com",
            "token_uri": f"{self.url}/token",
        }
        path.write_text(json.dumps(content))
        return path, public


_FAULTS = {
    "unavailable": (503, "UNAVAILABLE", "The service is currently unavailable."),
    "quota": (
        429,
        "RESOURCE_EXHAUSTED",
        "The following quota metrics exceed quota limits: "
        "aiplatform.googleapis.com/custom_model_training_nvidia_l4_gpus",
    ),
    "too_many": (429, "RESOURCE_EXHAUSTED", "Quota exceeded for requests per minute."),
    "forbidden": (403, "PERMISSION_DENIED", "Permission 'aiplatform.customJobs.create' denied on resource."),
    "echo": (400, "INVALID_ARGUMENT", "Invalid value at custom_job: {variables}"),
}


class _Handler(BaseHTTPRequestHandler):
    vertex: VertexServer

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            answer = self._route(method, body)
        except Refused as refused:
            error = {"code": refused.code, "message": str(refused), "status": refused.status}
            shape = {"error": error} if refused.status.isupper() else {"error": refused.status}
            self._send(refused.code, json.dumps(shape))
            return
        if answer is None:
            self.close_connection = True
            return
        self._send(200, answer)

    def _route(self, method: str, body: bytes) -> str | None:
        parts = urlsplit(self.path)
        if (method, parts.path) == ("POST", "/token"):
            return json.dumps(self.vertex.token(parse_qs(body.decode())))
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.vertex.tokens:
            raise Refused(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if (method, parts.path) == ("POST", "/v2/entries:list"):
            return self.vertex.entries(body)
        route = parts.path.removeprefix(f"{_LOCATION}/")
        if route == "customJobs":
            return self.vertex.create(body) if method == "POST" else self.vertex.list(parse_qs(parts.query))
        found = re.fullmatch(r"customJobs/([0-9]+)(:cancel)?", route)
        if found is None or (method == "POST") != bool(found[2]):
            raise Refused(404, "NOT_FOUND", "No such method.")
        return self.vertex.cancel(found[1]) if found[2] else self.vertex.get(found[1])

    def _send(self, code: int, text: str) -> None:
        content = text.encode()
        self.send_response(code, HTTPStatus(code).phrase)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)


def _text(proto: Any) -> str:
    return json_format.MessageToJson(proto)


def _check(proto: Any) -> None:
    """Refuse what the client's messages can hold and Google does not take."""
    _demand(0 < len(proto.display_name) <= 128, "display_name")
    _demand(not proto.name and not proto.state, "an output only field is set")
    for key, value in proto.labels.items():
        _demand(
            re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", key) and re.fullmatch(r"[a-z0-9_-]{0,64}", value), f"label {key}"
        )
    _demand(len(proto.job_spec.worker_pool_specs) == 1, "worker_pool_specs")
    (pool,) = proto.job_spec.worker_pool_specs
    _demand(pool.replica_count == 1, "replica_count")
    _demand(bool(pool.container_spec.image_uri), "image_uri")
    _demand(pool.disk_spec.boot_disk_size_gb >= 100, "boot_disk_size_gb")
    _demand(len(pool.container_spec.env) <= 100, "more than 100 variables")
    for variable in pool.container_spec.env:
        _demand(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable.name) and "$(" not in variable.value, variable.name)
    accelerator = AcceleratorType(pool.machine_spec.accelerator_type).name
    count = MACHINES.get(accelerator, {}).get(pool.machine_spec.machine_type)
    _demand(count == pool.machine_spec.accelerator_count, "machine type and accelerator do not fit")
    scheduling = proto.job_spec.scheduling
    _demand(0 < scheduling.timeout.ToTimedelta().total_seconds() <= 7 * 86_400, "timeout")
    is_flexible = scheduling.strategy == type(scheduling).Strategy.Value("FLEX_START")
    _demand(is_flexible or not scheduling.HasField("max_wait_duration"), "max_wait_duration")


def _demand(holds: Any, what: str) -> None:
    if not holds:
        raise Refused(400, "INVALID_ARGUMENT", f"Invalid value: {what}")


def _parse_filter(text: str) -> Any:
    """The test of a filter: comparisons joined by AND, of which parts in brackets are joined by OR."""
    groups = [_alternatives(part) for part in text.split(" AND ")] if text else []

    def fits(job: Job) -> bool:
        return all(any(_holds(job, *term) for term in group) for group in groups)

    return fits


def _alternatives(part: str) -> list[tuple[str, str, str]]:
    terms = part[1:-1].split(" OR ") if part.startswith("(") and part.endswith(")") else [part]
    found = [_TERM.fullmatch(term) for term in terms]
    if not all(found):
        raise Refused(400, "INVALID_ARGUMENT", f"Invalid list filter: {part}")
    parsed = [(term[1], term[2], term[3]) for term in found if term]
    for name, sign, value in parsed:
        _demand(name == "create_time" or sign in {"=", "!="}, f"operator {sign} of {name}")
        _demand(name != "state" or value in JobState.__members__, f"state {value}")
    return parsed


def _holds(job: Job, name: str, sign: str, value: str) -> bool:
    if name == "create_time":
        created, limit = job.proto.create_time.ToDatetime(UTC), datetime.fromisoformat(value)
        return {">": created > limit, ">=": created >= limit, "<": created < limit, "<=": created <= limit}[sign]
    if name.startswith("labels."):
        here = job.proto.labels.get(name.removeprefix("labels."))
    else:
        here = job.proto.display_name if name == "display_name" else job.state
    return (here == value) == (sign == "=")


def _stop(job: Job) -> None:
    """SIGTERM, then SIGKILL, as Vertex AI ends a container."""
    if job.process is None or job.process.poll() is not None:
        return
    job.process.send_signal(signal.SIGTERM)
    try:
        job.process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        job.process.kill()
        job.process.wait()
