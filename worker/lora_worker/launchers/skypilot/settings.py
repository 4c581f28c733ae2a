"""The settings of the launcher for SkyPilot: where its API server is, and what its machines shall be."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from lora_worker.configuration.addresses import server_fault
from lora_worker.configuration.keys import Role, read_key, text_fault
from lora_worker.configuration.settings import Settings
from lora_worker.configuration.texts import split_list

_INFRA = re.compile(r"[A-Za-z0-9_*-]{1,40}(/[A-Za-z0-9._:@*-]{1,200}){0,2}")
_VOLUME = re.compile(
    r"(s3|gs|r2|nebius|oci)://[A-Za-z0-9][A-Za-z0-9._-]{1,200}|cos://[a-z0-9-]{2,40}/[A-Za-z0-9_-]{2,200}"
    r"|[a-z0-9][a-z0-9-]{0,62}"
)
"""A bucket without a folder (SkyPilot's `Storage._validate_source` refuses one that is to be mounted), or a volume."""


class SkyPilotSettings(Settings):
    """The daemon's settings where SkyPilot is the launcher."""

    skypilot_url: str = Field(description="Address of SkyPilot's API server, without credentials in it")
    skypilot_token: SecretStr = Field(
        default=SecretStr(""),
        description="Token of a service account there (sky_…); unset: the server asks nobody who he is",
    )
    skypilot_python: str = Field(
        default="",
        max_length=500,
        description="Path of a Python that has SkyPilot; unset: the worker's own, with the extra `skypilot`",
    )
    skypilot_image: str = Field(
        min_length=3,
        max_length=500,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$",
        description="The trainer's image, such as ghcr.io/OWNER/lora-trainer:TAG",
    )
    skypilot_infra: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=20,
        description="Where machines may be, comma-separated, as `infra` of a SkyPilot task: k8s, aws/us-east-1, gcp; "
        "unset: wherever it is cheapest",
    )
    skypilot_spot: bool = Field(
        default=False,
        description="Whether machines may be spot machines: cheaper, and replaced when taken away. Kubernetes has them "
        "only where a cluster labels such nodes; elsewhere its ordinary ones are taken",
    )
    skypilot_accelerator: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9-]{0,60}$",
        description="The GPU's name in SkyPilot's catalog, such as H100-SXM; unset: that of the endpoint's or the "
        "job's GPU",
    )
    skypilot_disk_gb: int = Field(
        default=256, ge=50, le=64_000, description="Gigabytes of a machine's disk, which holds the image and downloads"
    )
    skypilot_volume: str = Field(
        default="",
        max_length=250,
        description="What keeps checkpoints and base models: a whole bucket (s3://BUCKET, gs://BUCKET, r2://BUCKET, "
        "cos://REGION/BUCKET), since SkyPilot mounts no folder of one, or a SkyPilot volume's name; unset: what is "
        "started again begins anew",
    )
    skypilot_hugging_face_token: SecretStr = Field(
        default=SecretStr(""),
        description="Hugging Face token for base models behind a licence; the trainers there get it as HF_TOKEN",
    )
    former_skypilot_servers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Addresses of former API servers, comma-separated, while launches made there live: the token is "
        "sent to them, too",
    )

    @field_validator("skypilot_url")
    @classmethod
    def _check_skypilot_server(cls, url: str) -> str:
        if fault := server_fault(url, "SkyPilot's API server"):
            raise ValueError(fault)
        return url.rstrip("/")

    @field_validator("skypilot_token")
    @classmethod
    def _check_skypilot_token(cls, token: SecretStr) -> SecretStr:
        if not token.get_secret_value():
            return token
        if not token.get_secret_value().startswith("sky_"):
            raise ValueError("is no token of a SkyPilot service account: those begin with sky_")
        if fault := text_fault(token):
            raise ValueError(fault)
        return token

    @field_validator("skypilot_hugging_face_token")
    @classmethod
    def _check_skypilot_hugging_face(cls, token: SecretStr) -> SecretStr:
        if token.get_secret_value() and read_key(token.get_secret_value()).role is not Role.HUGGING_FACE:
            raise ValueError("is no token of Hugging Face: those begin with hf_")
        return token

    @field_validator("skypilot_volume")
    @classmethod
    def _check_skypilot_volume(cls, volume: str) -> str:
        if volume and not _VOLUME.fullmatch(volume):
            raise ValueError(
                "is neither a bucket nor a volume: write s3://BUCKET (gs, r2, nebius, oci) without a folder, since "
                "SkyPilot mounts whole buckets only, cos://REGION/BUCKET, or a volume's name"
            )
        return volume

    @field_validator("skypilot_infra", "former_skypilot_servers", mode="before")
    @classmethod
    def _split_skypilot_lists(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("skypilot_infra")
    @classmethod
    def _check_skypilot_infra(cls, infra: tuple[str, ...]) -> tuple[str, ...]:
        for each in infra:
            if not _INFRA.fullmatch(each):
                raise ValueError(f"has {each[:60]!r}, which is no place; write cloud, cloud/region or k8s/context")
        return infra

    @field_validator("former_skypilot_servers")
    @classmethod
    def _check_skypilot_former(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(cls._check_skypilot_server(url) for url in urls)
