"""A run as a custom job of Vertex AI (`CustomJob` of `google.cloud.aiplatform.v1`), in its JSON form.

    POST <location>/customJobs          the job; the answer has its `name`, whose last part is a number of Google's
    GET  <location>/customJobs/<number>
    GET  <location>/customJobs?filter=  by `display_name` or by a label
    POST <location>/customJobs/<number>:cancel

A launch's id is a name of our own: the run's, and digits that no other launch has. Google numbers a job only when it
has accepted it, so by its number a job could not be found whose answer was lost; and which variable tells a container
its number is not documented (`CLOUD_ML_JOB_ID` holds "the name given to the training job", says Google's own client).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_contract.machine_request import LAUNCH_ID_VARIABLE, pack_request
from lora_worker.launchers.base import Policy
from lora_worker.launchers.marks import launch_name
from lora_worker.launchers.vertex.machines import Machine
from lora_worker.launchers.vertex.settings import MAX_JOB_SECONDS, VertexSettings

PROJECT_LABEL, RUN_LABEL, LAUNCH_LABEL, TTL_LABEL = "lora_project", "lora_run", "lora_launch", "lora_ttl_seconds"
"""Labels have lower-case letters, digits, `_` and `-`, 64 at most; filters take a name with a hyphen only quoted."""

LIVE_STATES = ("JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_UPDATING", "JOB_STATE_PAUSED")
"""Of a job that waits or works, and whose end nobody has asked for."""
COMMAND = ("python", "-u", "-m", "lora_trainer.machine")


@dataclass(frozen=True, slots=True)
class JobShape:
    """What is the same for all jobs of one worker."""

    mark: str
    """The project's: `project_mark`."""
    image: str
    strategy: str
    bucket: str
    boot_disk_gb: int
    service_account: str
    network: str

    @classmethod
    def of(cls, settings: VertexSettings, mark: str) -> JobShape:
        """The shape that the settings ask for."""
        return cls(
            mark=mark,
            image=settings.vertex_image,
            strategy=settings.vertex_strategy,
            bucket=settings.vertex_bucket,
            boot_disk_gb=settings.vertex_boot_disk_gb,
            service_account=settings.vertex_service_account,
            network=settings.vertex_network,
        )


def custom_job(
    shape: JobShape, machine: Machine, launch_id: str, payload: dict[str, Any], policy: Policy
) -> dict[str, Any]:
    """The body of the request that makes a launch's job.

    Raises:
        ValueError: the payload is too large for a container's environment, which has 100 variables.
    """
    volume = {"LORA_TRAINER_VOLUME": f"/gcs/{shape.bucket}/lora-trainer"} if shape.bucket else {}
    environment = {**pack_request(payload), LAUNCH_ID_VARIABLE: launch_id, **volume}
    pool = {
        "machineSpec": {
            "machineType": machine.name,
            "acceleratorType": machine.accelerator_type,
            "acceleratorCount": machine.gpu_count,
        },
        "replicaCount": "1",
        "diskSpec": {
            "bootDiskSizeGb": shape.boot_disk_gb,
            **({"bootDiskType": machine.boot_disk_type} if machine.boot_disk_type else {}),
        },
        "containerSpec": {
            "imageUri": shape.image,
            "command": list(COMMAND),
            "env": [{"name": name, "value": value} for name, value in environment.items()],
        },
    }
    optional = {"serviceAccount": shape.service_account, "network": shape.network}
    run_name = launch_id.rpartition("-")[0]
    return {
        "displayName": launch_id,
        "labels": {
            PROJECT_LABEL: shape.mark,
            RUN_LABEL: run_name,
            LAUNCH_LABEL: launch_id,
            TTL_LABEL: str(int(policy.ttl_seconds)),
        },
        "jobSpec": {
            "workerPoolSpecs": [pool],
            "scheduling": _scheduling(shape.strategy, policy),
            **{key: value for key, value in optional.items() if value},
        },
    }


def _scheduling(strategy: str, policy: Policy) -> dict[str, Any]:
    execution = int(min(policy.execution_seconds, MAX_JOB_SECONDS))
    scheduling: dict[str, Any] = {
        "strategy": strategy,
        "timeout": f"{execution}s",
        # A machine that is lost or taken away is replaced; the trainer goes on from its checkpoint there.
        "restartJobOnWorkerRestart": True,
    }
    if strategy == "FLEX_START":
        # 0 would be an endless wait.
        scheduling["maxWaitDuration"] = f"{max(int(policy.ttl_seconds) - execution, 60)}s"
    return scheduling


def of_project(mark: str) -> str:
    """The filter that finds all launches of a project."""
    return f'labels.{PROJECT_LABEL}="{mark}"'


def of_live(mark: str) -> str:
    """The filter that finds the launches of a project that wait or work."""
    states = " OR ".join(f'state="{state}"' for state in LIVE_STATES)
    return f"{of_project(mark)} AND ({states})"


def of_failed(mark: str, since: datetime) -> str:
    """The filter that finds the launches of a project that were made since then and have failed."""
    return f'{of_project(mark)} AND state="JOB_STATE_FAILED" AND create_time>"{since:%Y-%m-%dT%H:%M:%SZ}"'


def of_run(mark: str, run_id: str) -> str:
    """The filter that finds the launches of a run."""
    return f'{of_project(mark)} AND labels.{RUN_LABEL}="{launch_name(run_id)}"'


def of_launch(launch_id: str) -> str:
    """The filter that finds a launch."""
    return f'display_name="{launch_id}"'
