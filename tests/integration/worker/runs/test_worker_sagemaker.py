"""A worker with SageMaker's stand-in and the trainer's real entry: a spot instance that is taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.standin import standin_env
from tests.processes.machine_cloud import NoRunPod
from tests.processes.stage import Stage
from tests.sagemaker_server import ACCOUNT, KEY, REGION, SECRET, SPOT_SHARE, SageMakerServer


class Region:
    """SageMaker with the trainer's real entry, and the stage of workers that launch there."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        image = {**standin_env(folder / "volume"), "LORA_TRAINER_GRACE_SECONDS": "20", "HOME": str(folder)}
        (folder / "aws").mkdir()
        (folder / "volume").mkdir(exist_ok=True)
        self.stage = stage
        self.server = SageMakerServer(folder / "aws", module="lora_trainer.machine", image_environment=image)

    def worker(self, **more: str) -> Any:
        return self.stage.worker(
            LORA_WORKER_LAUNCHER="sagemaker",
            LORA_WORKER_SAGEMAKER_REGION=REGION,
            LORA_WORKER_SAGEMAKER_ROLE=f"arn:aws:iam::{ACCOUNT}:role/lora-trainer",
            LORA_WORKER_SAGEMAKER_IMAGE=f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/lora-trainer:1",
            LORA_WORKER_SAGEMAKER_S3_PATH="s3://lora-tests/runs",
            LORA_WORKER_SAGEMAKER_SPOT="true",
            LORA_WORKER_ENDPOINT_GPU_TYPE="L4",
            AWS_ENDPOINT_URL=self.server.url,
            AWS_ACCESS_KEY_ID=KEY,
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_EC2_METADATA_DISABLED="true",
            **more,
        )

    def log(self) -> str:
        """What workers and containers have printed."""
        logs = [path.read_text() for job in self.server.jobs.values() for path in job.streams]
        return "\n".join([self.stage.log(), *logs])


@pytest.fixture
def region(stage_with: Callable[..., Stage], tmp_path: Path) -> Iterator[Region]:
    made = Region(stage_with(NoRunPod(), tmp_path / "volume"), tmp_path)
    try:
        yield made
    finally:
        made.server.close()


def test_spot_run_goes_on_where_it_was_and_costs_what_aws_bills(region: Region) -> None:
    stage, server = region.stage, region.server
    job_id = stage.user.queue(max_steps=400)
    region.worker()
    stage.training(job_id, step=10)
    ((name, job),) = server.jobs.items()
    server.interrupt(name)
    assert stage.ended(job_id)["status"] == "completed", region.log()
    (run,) = stage.runs(job_id)
    assert (run["external_job_id"], run["attempt"], job.starts) == (name, 1, 2), "one launch, two executions"
    steps = [step.step for step in stage.steps(job_id)]
    assert sorted(set(steps)) == list(range(1, 401))
    assert len(steps) < 400 + 10, "it went on from its checkpoint"
    assert len(stage.user.costs(job_id)) == 1
    assert run["gpu_seconds"] <= max(job.worked * SPOT_SHARE, 1), "AWS's own measure, not ours"
