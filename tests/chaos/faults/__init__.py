"""The faults: one function each, in a module for what they break."""

from __future__ import annotations

from collections.abc import Mapping

from tests.chaos.clouds.base import Cloud
from tests.chaos.faults import calls, database, gpu_server, machines, runpod, runpod_pods, spot, workers
from tests.chaos.faults.table import Fault, select
from tests.chaos.scene import Act

COMMON: Mapping[str, Fault] = {**database.FAULTS, **workers.FAULTS, **calls.FAULTS}
"""The faults that can happen at every cloud, except where one spares them."""
FAULTS: Mapping[str, Fault] = {
    **COMMON,
    **machines.FAULTS,
    **spot.FAULTS,
    **runpod.FAULTS,
    **runpod_pods.FAULTS,
    **gpu_server.FAULTS,
}
"""All faults by their names, in the report's order."""


def faults_of(cloud: type[Cloud]) -> dict[str, Act]:
    """The faults that can happen where a launcher's jobs train."""
    return select(FAULTS, cloud)
