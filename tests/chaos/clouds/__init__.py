"""Where the jobs of a chaos run train: one module a launcher, and a row for it here."""

from __future__ import annotations

from collections.abc import Mapping

from tests.chaos.clouds.base import Cloud
from tests.chaos.clouds.gpu_server import GpuServerCloud
from tests.chaos.clouds.runpod import RunPodCloud
from tests.chaos.clouds.runpod_pods import RunPodPodsCloud
from tests.chaos.clouds.sagemaker import SageMakerCloud
from tests.chaos.clouds.skypilot import SkyPilotCloud
from tests.chaos.clouds.vertex import VertexCloud

_ALL: tuple[type[Cloud], ...] = (
    RunPodCloud,
    RunPodPodsCloud,
    GpuServerCloud,
    SageMakerCloud,
    SkyPilotCloud,
    VertexCloud,
)
CLOUDS: Mapping[str, type[Cloud]] = {cloud.name: cloud for cloud in _ALL}
"""By the names of their launchers."""
