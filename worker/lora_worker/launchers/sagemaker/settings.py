"""The settings of the launcher for AWS SageMaker: region, role, image, bucket, and how instances are had."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from lora_worker.configuration.settings import Settings
from lora_worker.configuration.texts import split_list
from lora_worker.launchers.sagemaker.addresses import REGION, Address, account_of

MAX_JOB_SECONDS = 28 * 86_400
"""The largest `MaxRuntimeInSeconds` (SageMaker's API reference, StoppingCondition)."""
_IMAGE = re.compile(rf"[0-9]{{12}}\.dkr[.-]ecr(?:-fips)?\.({REGION})\.(?:amazonaws\.com(?:\.cn)?|on\.aws)/\S+")
_ID = r"[0-9a-zA-Z-]{1,32}"


class SageMakerSettings(Settings):
    """The daemon's settings where SageMaker is the launcher. Credentials come by boto3's own chain."""

    sagemaker_region: str = Field(pattern=rf"^{REGION}$", description="Region of the jobs, such as eu-west-1")
    sagemaker_role: str = Field(
        pattern=r"^arn:aws[a-z-]{0,20}:iam::[0-9]{12}:role/[a-zA-Z_0-9+=,.@/-]{1,500}$",
        description="ARN of the role that containers have, arn:aws:iam::123456789012:role/NAME: it pulls "
        "the image, writes to the bucket and to the log",
    )
    sagemaker_image: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{2,254}$",
        description="The trainer's image in ECR, ACCOUNT.dkr.ecr.REGION.amazonaws.com/lora-trainer:TAG",
    )
    sagemaker_s3_path: str = Field(
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/=-]{0,500})?$",
        description="Where SageMaker keeps checkpoints, one folder a job, and its own output: s3://BUCKET/PREFIX",
    )
    sagemaker_spot: bool = Field(
        default=False,
        description="Whether instances are spot instances: cheaper, and taken away at times; a run goes on from its "
        "checkpoint then",
    )
    sagemaker_instance_type: str = Field(
        default="",
        pattern=r"^(ml\.[a-z0-9.-]{3,40})?$",
        description="Instance type, such as ml.g6.12xlarge; unset: the one for the GPU of the endpoint or of the job",
    )
    sagemaker_kms_key: str = Field(
        default="",
        pattern=r"^[a-zA-Z0-9:/_-]{0,2048}$",
        description="KMS key with which SageMaker encrypts what it writes to the bucket; unset: S3's own",
    )
    sagemaker_subnets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=16, description="Subnets of the containers, comma-separated; unset: SageMaker's network"
    )
    sagemaker_security_groups: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=5, description="Security groups of the containers, comma-separated; with the subnets"
    )

    @property
    def sagemaker_address(self) -> Address:
        """Where launches go."""
        return Address(self.sagemaker_region, account_of(self.sagemaker_role), self.sagemaker_instance_type)

    @field_validator("sagemaker_image")
    @classmethod
    def _check_sagemaker_image(cls, image: str) -> str:
        if not _IMAGE.fullmatch(image):
            raise ValueError(
                "is no image in ECR, from which SageMaker pulls alone: write "
                "ACCOUNT.dkr.ecr.REGION.amazonaws.com/lora-trainer:TAG"
            )
        return image

    @field_validator("sagemaker_subnets", "sagemaker_security_groups", mode="before")
    @classmethod
    def _split_sagemaker_ids(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("sagemaker_subnets", "sagemaker_security_groups")
    @classmethod
    def _check_sagemaker_ids(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(_ID, each) for each in ids):
            raise ValueError("must hold ids such as subnet-0a1b2c and sg-0a1b2c, comma-separated")
        return ids

    @model_validator(mode="after")
    def _check_with_sagemaker(self) -> SageMakerSettings:
        image = _IMAGE.fullmatch(self.sagemaker_image)
        if image and image[1] != self.sagemaker_region:
            raise ValueError(
                f"LORA_WORKER_SAGEMAKER_IMAGE is in {image[1]}, and SageMaker pulls from the ECR of its own region "
                f"alone, {self.sagemaker_region}: push the image there"
            )
        if bool(self.sagemaker_subnets) != bool(self.sagemaker_security_groups):
            raise ValueError(
                "LORA_WORKER_SAGEMAKER_SUBNETS and LORA_WORKER_SAGEMAKER_SECURITY_GROUPS are set together or not at all"
            )
        return self
