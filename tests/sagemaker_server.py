"""A stand-in for SageMaker, STS and CloudWatch Logs: strict, and each training job is a process of this machine.

Requests are checked against botocore's own model of the services: unknown and missing members, types, lengths, numbers
of entries, patterns and enums, of which boto3 itself checks only some and moto none. Statuses follow "Managed Spot
Training Lifecycle" of Amazon's guide; the texts of errors are as AWS words them (docs/sagemaker.md).
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
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from sandbox.processes import own_environment
from tests.processes.reopened import ReopenedPort
from tests.project import ROOT
from tests.sagemaker_shapes import Refused, check_shape, model_of

REGION, ACCOUNT = "eu-west-1", "123456789012"
KEY, SECRET = "AKIAEXAMPLEOFTHETEST", "secret-of-the-tests"
COMMAND = ["python", "-u", "-m", "lora_trainer.machine"]
SPOT_SHARE = 0.3
"""What a second of a spot instance is billed."""
_STOP_SECONDS = 2.0
_LIVE = {"InProgress", "Stopping"}
_NO_CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)


@dataclass
class Job:
    """A training job, and the process of its container."""

    request: dict[str, Any]
    created_at: float
    status: str = "InProgress"
    secondary: str = "Starting"
    failure: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    running_since: float | None = None
    worked: float = 0.0
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    kill_at: float | None = None
    ends_as: tuple[str, str] | None = None
    """The statuses that it gets when its process has ended after a signal of ours."""
    streams: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    @property
    def is_spot(self) -> bool:
        return bool(self.request.get("EnableManagedSpotTraining"))


class SageMakerServer(ReopenedPort):
    """One region of an account, with `instances` of each type. Its clock is `speed` times as fast as ours.

    `faults` are used up in their order by the calls that come: "lose_answer" (carried out, and the connection breaks),
    "drop" (not carried out, and the connection breaks), "throttle", "internal", "quota", "no_quota", "forbidden",
    "no_capacity" (the job finds no instance).

    `module` runs in each container in place of the trainer's, and `image_environment` is what the image sets. The
    folders of checkpoints in S3 are in `s3` below `folder`, each job's own disk in `disks`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        module: str,
        instances: int = 1,
        speed: float = 1.0,
        image_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._image_environment = image_environment or {}
        self.faults: list[str] = []
        self.jobs: dict[str, Job] = {}
        self.lists_lag_seconds = 0.0
        """Lists do not show jobs yet that are younger."""
        self.account = ACCOUNT
        """Whose credentials the callers have, as STS says."""
        self._module, self._instances, self._speed = module, instances, speed
        self._model = model_of("sagemaker")
        self._lock = threading.RLock()
        self._began = (time.time(), time.monotonic())
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, service: str, *, key: str = KEY, config: Config | None = None, region_name: str = REGION) -> Any:
        """boto3's client of a service here."""
        session = boto3.session.Session(key, SECRET, region_name=region_name)
        return session.client(service, endpoint_url=self.url, config=config)

    def now(self) -> float:
        wall, ticks = self._began
        return wall + (time.monotonic() - ticks) * self._speed

    def interrupt(self, name: str) -> None:
        """Take the spot instance of a job away: SIGTERM, and the container is started again on another one."""
        with self._lock:
            job = self.jobs[name]
            assert job.is_spot, "only spot instances are taken away"
            self._signal(job, ("InProgress", "Interrupted"))

    def living(self) -> list[Job]:
        """The jobs that have not ended."""
        with self._lock:
            self._tick()
            return [job for job in self.jobs.values() if job.status in _LIVE]

    def working(self) -> list[Job]:
        """Those of them that have a container, which nobody ends at the moment."""
        return [job for job in self.living() if job.process is not None and job.ends_as is None]

    def close(self) -> None:
        self._hang_up()
        with self._lock:
            for job in self.jobs.values():
                if job.process is not None and job.process.poll() is None:
                    os.killpg(job.process.pid, signal.SIGKILL)
                    job.process.wait()

    # The operations

    def answer(self, service: str, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer of an operation. Raises: Refused."""
        if service == "SageMaker":
            shape = self._model.operation_model(operation).input_shape
            check_shape(shape, request, operation)
        with self._lock:
            self._tick()
            found: dict[str, Any] = getattr(self, f"_{operation}")(request)
            self._tick()
            return found

    def _CreateTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        name, limits = request["TrainingJobName"], request.get("StoppingCondition") or {}
        arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{name}"
        is_spot, wait = bool(request.get("EnableManagedSpotTraining")), limits.get("MaxWaitTimeInSeconds")
        if name in self.jobs:
            raise Refused(
                "ResourceInUse",
                "Training job names must be unique within an AWS account and region, and a training job with this name "
                f"already exists ({arn})",
            )
        if limits.get("MaxRuntimeInSeconds", 86_400) > 28 * 86_400:
            raise Refused("ValidationException", "MaxRuntimeInSeconds must be at most 2419200")
        if is_spot and (wait is None or wait < limits["MaxRuntimeInSeconds"]):
            raise Refused(
                "ValidationException",
                "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds",
            )
        if not is_spot and wait is not None:
            raise Refused("ValidationException", "MaxWaitTimeInSeconds is only for managed spot training")
        if request["AlgorithmSpecification"].get("ContainerEntrypoint") != COMMAND:
            raise Refused("ValidationException", "this stand-in knows one command only")
        job = self.jobs[name] = Job(request, self.now())
        if self._take_fault("no_capacity"):
            self._end(job, "Failed", "Failed", _NO_CAPACITY)
        return {"TrainingJobArn": arn}

    def _DescribeTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self.jobs.get(request["TrainingJobName"])
        if job is None:
            raise Refused("ValidationException", "Requested resource not found.")
        found = {**job.request, **self._summary(job), "EnableManagedSpotTraining": job.is_spot}
        found.pop("Tags", None)
        if job.started_at is not None:
            found["TrainingStartTime"] = job.started_at
        if job.failure is not None:
            found["FailureReason"] = job.failure
        if job.status not in _LIVE and job.started_at is not None:
            found["TrainingTimeInSeconds"] = max(int(job.worked), 1)
            found["BillableTimeInSeconds"] = max(int(job.worked * (SPOT_SHARE if job.is_spot else 1)), 1)
        return found

    def _StopTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self.jobs.get(request["TrainingJobName"])
        if job is None:
            raise Refused("ValidationException", "Requested resource not found.")
        if job.status != "InProgress":
            raise Refused(
                "ValidationException",
                f"The request was rejected because the training job is in status {job.status}.",
            )
        if job.process is None:
            self._end(job, "Stopped", "Stopped")
        else:
            job.status = job.secondary = "Stopping"
            self._signal(job, ("Stopped", "Stopped"))
        return {}

    def _ListTrainingJobs(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted, part = request.get("StatusEquals"), request.get("NameContains", "")
        shown_before = self.now() - self.lists_lag_seconds
        found = [job for name, job in self.jobs.items() if part in name and job.created_at <= shown_before]
        if request.get("SortOrder", "Ascending") == "Descending":
            found.reverse()
        start, most = int(request.get("NextToken", 0)), request.get("MaxResults", 10)
        # As Amazon's reference says: the page is cut first, and then those of another status are left out.
        cut = [job for job in found[start : start + most] if wanted is None or job.status == wanted]
        page = {"TrainingJobSummaries": [self._summary(job) for job in cut]}
        return page | ({"NextToken": str(start + most)} if start + most < len(found) else {})

    def _DescribeLogStreams(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request["logGroupName"] == "/aws/sagemaker/TrainingJobs"
        name = request["logStreamNamePrefix"].removesuffix("/")
        streams = self.jobs[name].streams if name in self.jobs else []
        return {
            "logStreams": [
                {"logStreamName": f"{name}/{path.stem}", "creationTime": int(path.stat().st_ctime * 1000)}
                for path in streams
            ]
        }

    def _GetLogEvents(self, request: dict[str, Any]) -> dict[str, Any]:
        name, _, stem = request["logStreamName"].partition("/")
        lines = (self.folder / name / f"{stem}.log").read_text().splitlines()
        first = int(request.get("nextToken", "f/0").removeprefix("f/"))
        kept = lines[first:] if request.get("startFromHead") else lines[-request.get("limit", 10_000) :]
        at = int(self.now() * 1000)
        events = [{"timestamp": at, "ingestionTime": at, "message": line} for line in kept]
        return {"events": events, "nextForwardToken": f"f/{len(lines)}", "nextBackwardToken": "b/0"}

    def _summary(self, job: Job) -> dict[str, Any]:
        name = job.request["TrainingJobName"]
        found = {
            "TrainingJobName": name,
            "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{name}",
            "CreationTime": job.created_at,
            "TrainingJobStatus": job.status,
            "SecondaryStatus": job.secondary,
        }
        return found | ({"TrainingEndTime": job.ended_at} if job.ended_at is not None else {})

    # What becomes of the jobs

    def _tick(self) -> None:
        for job in self.jobs.values():
            self._look(job)
        busy = sum(job.process is not None for job in self.jobs.values())
        for job in self.jobs.values():
            if job.status == "InProgress" and job.process is None and busy < self._instances:
                self._start(job)
                busy += 1

    def _start(self, job: Job) -> None:
        name = job.name
        job.starts += 1
        log = self.folder / name / f"algo-1-{job.starts}.log"
        log.parent.mkdir(exist_ok=True)
        environment = {**own_environment(), **self._image_environment, **self._mounted(job), "TRAINING_JOB_NAME": name}
        with log.open("wb") as output:
            job.process = subprocess.Popen(
                [sys.executable, "-u", "-m", self._module],
                env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        job.streams.append(log)
        job.secondary, job.running_since, job.ends_as, job.kill_at = "Training", self.now(), None, None
        job.started_at = job.started_at or job.running_since

    def checkpoints_of(self, name: str) -> Path:
        """The folder in S3 to which a job's checkpoints are copied."""
        return self.folder / "s3" / self.jobs[name].request["CheckpointConfig"]["S3Uri"].removeprefix("s3://")

    def _mounted(self, job: Job) -> dict[str, str]:
        """The container's environment, with folders of this machine for SageMaker's own."""
        name = job.request["TrainingJobName"]
        folders = {
            job.request["CheckpointConfig"]["LocalPath"]: self.checkpoints_of(name),
            "/tmp/lora-models": self.folder / "disks" / f"{name}-{job.starts}",
        }
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        return {key: str(folders.get(value, value)) for key, value in job.request["Environment"].items()}

    def _look(self, job: Job) -> None:
        if job.process is None:
            return
        code = job.process.poll()
        if code is None:
            self._limit(job)
            return
        assert job.running_since is not None
        job.worked += self.now() - job.running_since
        job.process, job.running_since = None, None
        if job.ends_as == ("InProgress", "Interrupted"):
            job.secondary = "Interrupted"
        elif job.ends_as is not None:
            self._end(job, *job.ends_as)
        elif code == 0:
            self._end(job, "Completed", "Completed")
        else:
            self._end(job, "Failed", "Failed", f"AlgorithmError: , exit code: {code if code > 0 else 128 - code}")

    def _limit(self, job: Job) -> None:
        assert job.running_since is not None
        most = job.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        if job.ends_as is None and job.worked + self.now() - job.running_since > most:
            job.status = job.secondary = "Stopping"
            self._signal(job, ("Stopped", "MaxRuntimeExceeded"))
        elif job.kill_at is not None and time.monotonic() > job.kill_at:
            self._kill(job, signal.SIGKILL)

    def _signal(self, job: Job, ends_as: tuple[str, str]) -> None:
        job.ends_as, job.kill_at = ends_as, time.monotonic() + _STOP_SECONDS
        self._kill(job, signal.SIGTERM)

    @staticmethod
    def _kill(job: Job, number: signal.Signals) -> None:
        assert job.process is not None
        with suppress(ProcessLookupError):
            os.killpg(job.process.pid, number)

    def _end(self, job: Job, status: str, secondary: str, failure: str | None = None) -> None:
        job.status, job.secondary, job.failure, job.ended_at = status, secondary, failure, self.now()

    # The server

    def _take_fault(self, *names: str) -> str | None:
        with self._lock:
            return self.faults.pop(0) if self.faults and self.faults[0] in names else None

    def _listen(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                status, kind, answer = server._respond(self.headers, content)
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(answer)))
                self.send_header("x-amzn-RequestId", "tests")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._open(Handler)

    def _respond(self, headers: Any, content: bytes) -> tuple[int, str, bytes]:
        """Status, type and content of an answer; status 0: the connection breaks."""
        kind = "application/x-amz-json-1.1"
        try:
            self._check_key(headers)
            if b"Action=GetCallerIdentity" in content:
                return 200, "text/xml", _IDENTITY.format(account=self.account).encode()
            service, _, operation = headers["x-amz-target"].partition(".")
            self._raise_fault(operation)
            if self._take_fault("drop"):
                return 0, kind, b""
            answer = self.answer(service, operation, json.loads(content))
            return 0 if self._take_fault("lose_answer") else 200, kind, json.dumps(answer).encode()
        except Refused as error:
            told = {"__type": error.code, "message": str(error), "Message": str(error)}
            return error.status, kind, json.dumps(told).encode()

    @staticmethod
    def _check_key(headers: Any) -> None:
        found = re.match(r"AWS4-HMAC-SHA256 Credential=([^/]+)/[0-9]{8}/([^/]+)/", headers.get("authorization", ""))
        if found is None or found[1] != KEY:
            raise Refused("UnrecognizedClientException", "The security token included in the request is invalid.", 403)
        if found[2] != REGION:
            raise Refused("InvalidSignatureException", f"Credential should be scoped to a valid region, {REGION}", 403)

    def _raise_fault(self, operation: str) -> None:
        match self._take_fault("throttle", "internal", "quota", "no_quota", "forbidden"):
            case "throttle":
                raise Refused("ThrottlingException", "Rate exceeded")
            case "internal":
                raise Refused("InternalFailure", "The request processing has failed.", 500)
            case "quota" | "no_quota" as which:
                limit = 0 if which == "no_quota" else 2
                raise Refused(
                    "ResourceLimitExceeded",
                    f"The account-level service limit 'ml.g6.4xlarge for training job usage' is {limit} Instances, "
                    f"with current utilization of {limit} Instances and a request delta of 1 Instances.",
                )
            case "forbidden":
                raise Refused(
                    "AccessDeniedException",
                    f"User: arn:aws:iam::{ACCOUNT}:user/worker is not authorized to perform: sagemaker:{operation} on "
                    "resource: * because no identity-based policy allows the action",
                )


_IDENTITY = """<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>arn:aws:iam::{account}:user/worker</Arn><UserId>AIDA</UserId><Account>{account}</Account>
</GetCallerIdentityResult><ResponseMetadata><RequestId>tests</RequestId></ResponseMetadata></GetCallerIdentityResponse>"""
