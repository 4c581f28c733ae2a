"""A run as a training job of SageMaker: the request of `CreateTrainingJob`, and the names of jobs.

A job's name is chosen by us and unique in region and account for ever: a creation whose answer was lost is found again
by it, and never made twice. It is the launch's id, and ends with the project's mark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lora_contract.machine_request import LAUNCH_ID_VARIABLE, pack_request
from lora_worker.launchers.base import Policy
from lora_worker.launchers.marks import launch_name
from lora_worker.launchers.sagemaker.settings import MAX_JOB_SECONDS, SageMakerSettings

COMMAND = ("python", "-u", "-m", "lora_trainer.machine")
PROJECT_TAG, RUN_TAG = "lora-project", "lora-run"
CHECKPOINTS = "/opt/ml/checkpoints"
"""SageMaker copies this folder to S3 while the container works, and back before it starts a container again."""
MODELS = "/tmp/lora-models"  # noqa: S108
"""Base models must not be copied to S3 with the checkpoints. `/tmp` is on the instance's own disk, too."""
MOST_CHARACTERS, MOST_VARIABLES = 512, 96
"""An environment has 100 entries of at most 512 characters (`TrainingEnvironmentMap`); four are not the request's."""
_LEAST_PENDING_SECONDS, _MOST_PENDING_SECONDS = 1800, 2_419_200
"""Bounds of `MaxPendingTimeInSeconds`."""
_VOLUME_GB = 100
"""Is asked for and not made: each type of our table has a disk of its own."""
_NAME = re.compile(r"lora-[0-9a-f]{32}-([0-9a-f]{10})")
_JOB_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True)
class JobShape:
    """What is the same for all jobs of one worker."""

    mark: str
    """The project's: `project_mark`."""
    role: str
    image: str
    s3_path: str
    is_spot: bool = False
    kms_key: str = ""
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: SageMakerSettings, mark: str) -> JobShape:
        """The shape that the settings ask for."""
        return cls(
            mark=mark,
            role=settings.sagemaker_role,
            image=settings.sagemaker_image,
            s3_path=settings.sagemaker_s3_path.rstrip("/"),
            is_spot=settings.sagemaker_spot,
            kms_key=settings.sagemaker_kms_key,
            subnets=settings.sagemaker_subnets,
            security_groups=settings.sagemaker_security_groups,
        )


def job_name(run_id: str, mark: str) -> str:
    """The name of a run's job. Raises: ValueError: the run's id is no UUID."""
    return f"{launch_name(run_id)}-{mark}"


def mark_of(name: str) -> str | None:
    """The mark of the project whose job bears this name; None where no worker has named it."""
    found = _NAME.fullmatch(name)
    return found[1] if found else None


def training_job(
    shape: JobShape, instance_type: str, name: str, payload: dict[str, Any], policy: Policy
) -> dict[str, Any]:
    """The request that makes a launch's job.

    Raises:
        ValueError: the payload is too large for a container's environment, or names no job.
    """
    job_id = str(payload.get("job_id") or payload["run_id"])
    if not _JOB_ID.fullmatch(job_id):
        raise ValueError("The request's job_id is no id.")
    environment = {
        **pack_request(payload, most_characters=MOST_CHARACTERS, most_variables=MOST_VARIABLES),
        LAUNCH_ID_VARIABLE: name,
        "LORA_TRAINER_VOLUME": CHECKPOINTS,
        "LORA_TRAINER_MODELS_VOLUME": MODELS,
    }
    if shape.is_spot:
        environment["LORA_TRAINER_CLOUD_RESTARTS"] = "true"
    output = {"S3OutputPath": f"{shape.s3_path}/output"}
    if shape.kms_key:
        output["KmsKeyId"] = shape.kms_key
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": shape.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": list(COMMAND),
        },
        "RoleArn": shape.role,
        "OutputDataConfig": output,
        "ResourceConfig": {"InstanceType": instance_type, "InstanceCount": 1, "VolumeSizeInGB": _VOLUME_GB},
        "StoppingCondition": _stopping_condition(policy, is_spot=shape.is_spot),
        "EnableManagedSpotTraining": shape.is_spot,
        # By job and not by run: the next attempt goes on from the last one's checkpoint.
        "CheckpointConfig": {"S3Uri": f"{shape.s3_path}/checkpoints/{job_id}", "LocalPath": CHECKPOINTS},
        "Environment": environment,
        "Tags": [{"Key": PROJECT_TAG, "Value": shape.mark}, {"Key": RUN_TAG, "Value": str(payload["run_id"])}],
    }
    if shape.subnets:
        request["VpcConfig"] = {"SecurityGroupIds": list(shape.security_groups), "Subnets": list(shape.subnets)}
    return request


def _stopping_condition(policy: Policy, *, is_spot: bool) -> dict[str, int]:
    run = max(int(min(policy.execution_seconds, MAX_JOB_SECONDS)), 1)
    wait = int(min(policy.ttl_seconds, MAX_JOB_SECONDS))
    if is_spot:
        # The time for waiting and working together, also after an instance was taken away.
        return {"MaxRuntimeInSeconds": run, "MaxWaitTimeInSeconds": max(wait, run)}
    pending = min(max(wait - run, _LEAST_PENDING_SECONDS), _MOST_PENDING_SECONDS)
    return {"MaxRuntimeInSeconds": run, "MaxPendingTimeInSeconds": pending}
