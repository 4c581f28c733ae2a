"""The settings of where runs are launched: the GPUs of the one endpoint, or a table of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, field_validator
from pydantic_settings import BaseSettings

from lora_worker.configuration.texts import none_if_empty


class RoutingSettings(BaseSettings):
    """The GPUs of the endpoint, and the file that names several endpoints."""

    routes: Path | None = Field(
        default=None,
        description="The routing table, a TOML file of endpoints and rules (docs/routing.md); empty: all runs go to "
        "the one endpoint of LORA_WORKER_LAUNCHER",
    )
    endpoint_gpu_type: str | None = Field(
        default=None, description="GPU of the endpoint, for limits and bills; empty: the one that the job asks for"
    )
    endpoint_gpu_count: int = Field(default=1, ge=1, le=8, description="GPUs of one worker of the endpoint")
    image_for_newer_gpus: bool = Field(
        default=False,
        description="Whether the trainer's image has CUDA 12.8 or newer, for GPUs newer than the H200 (B200, "
        "RTX-PRO-6000); the Dockerfile's has 12.6, so endpoints and jobs with them are refused",
    )
    allow_fewer_gpus: bool = Field(
        default=False,
        description="Train a job that asks for more GPUs than its endpoint has on those that are there, instead of "
        "refusing it",
    )

    _routing_table: Any = PrivateAttr(default=None)

    @property
    def routing_table(self) -> Any:
        """What the launchers' registry has read of `routes`; None before. A second reading might find another file."""
        return self._routing_table

    def keep_routing_table(self, table: Any) -> None:
        """Keep what was read of `routes`."""
        self._routing_table = table

    @field_validator("routes", "endpoint_gpu_type", mode="before")
    @classmethod
    def _none_where_empty(cls, value: Any) -> Any:
        return none_if_empty(value)
