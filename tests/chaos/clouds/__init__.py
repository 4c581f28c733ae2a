"""Where the jobs of a chaos run train: one module a launcher, and a row for it here."""

from __future__ import annotations

from collections.abc import Mapping

from tests.chaos.clouds.base import Cloud
from tests.chaos.clouds.gpu_server import GpuServerCloud
from tests.chaos.clouds.runpod import RunPodCloud
from tests.chaos.clouds.runpod_pods import RunPodPodsCloud

CLOUDS: Mapping[str, type[Cloud]] = {cloud.name: cloud for cloud in (RunPodCloud, RunPodPodsCloud, GpuServerCloud)}
"""By the names of their launchers."""
