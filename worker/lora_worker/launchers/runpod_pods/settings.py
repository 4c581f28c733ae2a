"""The settings of the launcher for RunPod's pods: the image, where pods are placed, and what is mounted there."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from lora_worker.configuration.settings import Settings
from lora_worker.configuration.texts import split_list
from lora_worker.launchers.runpod.settings import RunPodAccount

_DATA_CENTER = re.compile(r"[A-Z0-9-]{2,40}")
_MOST_DATA_CENTERS = 30


class RunPodPodsSettings(RunPodAccount, Settings):
    """The daemon's settings where RunPod's pods are the launcher."""

    runpod_pods_image: str = Field(
        min_length=3,
        max_length=500,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$",
        description="The trainer's image with a tag that never moves, as in deploy.toml",
    )
    runpod_pods_disk_gb: int = Field(
        default=80, ge=5, le=4000, description="A pod's own disk in GB, empty at each start of its container"
    )
    runpod_pods_volume_id: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_-]{0,100}$",
        description="Id of the network volume with checkpoints and base models; unset: what is started again begins "
        "anew",
    )
    runpod_pods_data_centers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Data centres for pods, comma-separated, such as EU-RO-1; with a volume the one where it is",
    )
    runpod_pods_cloud: Literal["SECURE", "COMMUNITY"] = Field(
        default="SECURE", description="Whose machines: SECURE (RunPod's data centres) or COMMUNITY (cheaper, others')"
    )
    runpod_pods_min_cuda: str = Field(
        default="12.6",
        pattern=r"^([0-9]{1,3}\.[0-9]{1,3})?$",
        description="Least CUDA version of a machine's driver, that of the image, such as 12.6; empty: any",
    )
    runpod_pods_registry_id: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_-]{0,100}$",
        description="Id of the credentials at RunPod with which a private image is pulled",
    )
    runpod_pods_hf_secret: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_]{0,100}$",
        description="Name of the secret at RunPod that holds a token of Hugging Face, for gated base models",
    )

    @field_validator("runpod_pods_image")
    @classmethod
    def _check_pods_image(cls, image: str) -> str:
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@" not in image and tag in {"", "latest"}:
            raise ValueError("has no tag, or the tag latest, which moves: name a release's own, such as lora-trainer:1")
        return image

    @field_validator("runpod_pods_data_centers", mode="before")
    @classmethod
    def _split_centers(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("runpod_pods_data_centers")
    @classmethod
    def _check_centers(cls, centers: tuple[str, ...]) -> tuple[str, ...]:
        if len(centers) > _MOST_DATA_CENTERS or not all(map(_DATA_CENTER.fullmatch, centers)):
            raise ValueError(f"must hold up to {_MOST_DATA_CENTERS} ids of data centres, such as EU-RO-1")
        return centers

    @model_validator(mode="after")
    def _check_volume(self) -> RunPodPodsSettings:
        if self.runpod_pods_volume_id and len(self.runpod_pods_data_centers) != 1:
            raise ValueError(
                "LORA_WORKER_RUNPOD_PODS_VOLUME_ID is set, and LORA_WORKER_RUNPOD_PODS_DATA_CENTERS does not name the "
                "one data centre where the volume is: a pod elsewhere can't have it"
            )
        return self
