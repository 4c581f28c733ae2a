"""AWS SageMaker: the strict stand-in of a region, behind a proxy that breaks boto3's calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from lora_worker.launchers.marks import run_of_name
from sandbox.runpod import Launch
from tests.chaos.clouds.faulty_proxy import Call, FaultyProxy, note_nothing
from tests.chaos.clouds.spot import SpotCloud
from tests.sagemaker_server import ACCOUNT, KEY, REGION, SECRET, Job, SageMakerServer

_CALLS = {
    "SageMaker.CreateTrainingJob": "run",
    "SageMaker.DescribeTrainingJob": "status",
    "SageMaker.StopTrainingJob": "cancel",
    "SageMaker.ListTrainingJobs": "health",
}
"""By the header `X-Amz-Target`, which alone tells AWS's operations of this protocol apart."""
_ERRORS = {
    404: (400, "ValidationException", "Requested resource not found."),
    429: (400, "ThrottlingException", "Rate exceeded"),
    500: (500, "InternalFailure", "The request processing has failed."),
    503: (503, "ServiceUnavailable", "The service is temporarily unavailable."),
}
"""AWS's status, code and text for what RunPod would answer with such a status."""


class SageMakerCloud(SpotCloud):
    """A region with `gpus` spot instances. Each training job is a process of the trainer's real entry."""

    name = "sagemaker"
    no_machine = "no_capacity"

    def __init__(self, stack: ExitStack, folder: Path, *, gpus: int, env: Mapping[str, str]) -> None:
        own = folder / "sagemaker"
        own.mkdir()
        image = {**env, "HOME": str(own)}
        self.server = SageMakerServer(own, module="lora_trainer.machine", instances=gpus, image_environment=image)
        stack.callback(self.server.close)
        self._proxy = FaultyProxy(stack, self.server.url, name_of=_name_of, accepted=note_nothing, refuse=_refuse)
        self.faults = self._proxy.faults
        self._nothing = own / "no-configuration"
        self._nothing.touch()

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "LORA_WORKER_LAUNCHER": self.name,
            "LORA_WORKER_SAGEMAKER_REGION": REGION,
            "LORA_WORKER_SAGEMAKER_ROLE": f"arn:aws:iam::{ACCOUNT}:role/lora-trainer",
            "LORA_WORKER_SAGEMAKER_IMAGE": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/lora-trainer:1",
            "LORA_WORKER_SAGEMAKER_S3_PATH": "s3://lora-tests/runs",
            "LORA_WORKER_SAGEMAKER_SPOT": "true",
            "LORA_WORKER_ENDPOINT_GPU_TYPE": "L4",
            "AWS_ENDPOINT_URL": self._proxy.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            # Whoever runs this has perhaps accounts of his own.
            "AWS_CONFIG_FILE": str(self._nothing),
            "AWS_SHARED_CREDENTIALS_FILE": str(self._nothing),
        }

    def launch_of(self, job: Job) -> Launch:
        return Launch(job.name, run_of_name(job.name), job.created_at)

    def log_of(self, job: Job) -> tuple[dict[str, Any], Sequence[Path]]:
        told = {"status": job.status, "secondary": job.secondary, "failure": job.failure, "starts": job.starts}
        return told, job.streams

    def take_away(self, job: Job) -> None:
        self.server.interrupt(job.name)


def _name_of(call: Call) -> str | None:
    return _CALLS.get(call.headers.get("x-amz-target", ""))


def _refuse(status: int, message: str, headers: dict[str, str]) -> Response:
    status, code, text = _ERRORS.get(status, (status, "ValidationException", message))
    return JSONResponse({"__type": code, "message": text}, status, headers, "application/x-amz-json-1.1")
