"""The catalog: GPU types with their pools, prices and stock, and the data centres.

Pools, memory and the prices of serverless workers are RunPod's of August 2026. Stock, prices of pods and what a data
centre offers are made up; `set_stock` changes the stock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.runpod.rest.problems import ProblemError
from sandbox.runpod.rest.requests import DataCenterQuery, GpuQuery, Stock

_LEVELS: tuple[Stock, ...] = ("NONE", "LOW", "MEDIUM", "HIGH")
_CUDA_VERSIONS = ("12.4", "12.6", "12.8")


@dataclass(frozen=True)
class GpuType:
    """A GPU type. `memory` in GB; `usd_per_hour` is the price of a serverless worker with one such GPU."""

    id: str
    name: str
    pool: str | None
    memory: int
    usd_per_hour: float | None
    manufacturer: str = "NVIDIA"


@dataclass(frozen=True)
class DataCenter:
    """A data centre, and the kinds of network volumes it has; the first is used when a volume names none."""

    id: str
    name: str
    region: str
    country: str
    volume_types: tuple[str, ...]


GPU_TYPES = (
    GpuType("NVIDIA RTX A4000", "RTX A4000", "AMPERE_16", 16, 0.58),
    GpuType("NVIDIA RTX A4500", "RTX A4500", "AMPERE_16", 20, 0.58),
    GpuType("NVIDIA L4", "L4", "AMPERE_24", 24, 0.68),
    GpuType("NVIDIA RTX A5000", "RTX A5000", "AMPERE_24", 24, 0.68),
    GpuType("NVIDIA GeForce RTX 3090", "RTX 3090", "AMPERE_24", 24, 0.68),
    GpuType("NVIDIA GeForce RTX 4090", "RTX 4090", "ADA_24", 24, 1.12),
    GpuType("NVIDIA RTX A6000", "RTX A6000", "AMPERE_48", 48, 1.22),
    GpuType("NVIDIA A40", "A40", "AMPERE_48", 48, 1.22),
    GpuType("NVIDIA L40", "L40", "ADA_48_PRO", 48, 1.91),
    GpuType("NVIDIA L40S", "L40S", "ADA_48_PRO", 48, 1.91),
    GpuType("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", "ADA_48_PRO", 48, 1.91),
    GpuType("NVIDIA A100 80GB PCIe", "A100 PCIe", "AMPERE_80", 80, 2.74),
    GpuType("NVIDIA A100-SXM4-80GB", "A100 SXM", "AMPERE_80", 80, 2.74),
    GpuType("NVIDIA H100 PCIe", "H100 PCIe", "ADA_80_PRO", 80, 4.18),
    GpuType("NVIDIA H100 80GB HBM3", "H100 SXM", "ADA_80_PRO", 80, 4.18),
    GpuType("NVIDIA H200", "H200 SXM", "HOPPER_141", 141, 5.58),
    GpuType("AMD Instinct MI300X OAM", "MI300X", None, 192, None, "AMD"),
)

DATA_CENTERS = (
    DataCenter("US-KS-2", "US Kansas 2", "NORTH_AMERICA", "US", ("STANDARD", "HIGH_PERFORMANCE")),
    DataCenter("US-TX-3", "US Texas 3", "NORTH_AMERICA", "US", ("STANDARD",)),
    DataCenter("US-CA-2", "US California 2", "NORTH_AMERICA", "US", ()),
    DataCenter("EU-RO-1", "EU Romania 1", "EUROPE", "RO", ("STANDARD", "HIGH_PERFORMANCE")),
)


class Catalog:
    """GPU types, data centres, and the stock of each GPU type in each data centre."""

    def __init__(self) -> None:
        self.gpus = {gpu.id: gpu for gpu in GPU_TYPES}
        self.data_centers = {center.id: center for center in DATA_CENTERS}
        self._stock: dict[tuple[str, str], Stock] = {}

    def set_stock(self, gpu: str, level: Stock, data_center: str | None = None) -> None:
        """Set the stock of a GPU type or of a whole pool, in one data centre or in all."""
        for kind in self.gpus.values():
            for center in self.data_centers:
                if gpu in {kind.id, kind.pool} and data_center in {None, center}:
                    self._stock[kind.id, center] = level

    def types_in(self, pools: Iterable[str]) -> list[GpuType]:
        """Return the GPU types of the given pools, in the order of the pools."""
        return [gpu for pool in pools for gpu in self.gpus.values() if gpu.pool == pool]

    def placement(self, gpu_ids: Iterable[str], centers: Iterable[str]) -> tuple[str, str] | None:
        """Return the first GPU type that is in stock, with its data centre; no centre given means any of them."""
        allowed = list(centers) or list(self.data_centers)
        free = ((gpu, center) for gpu in gpu_ids for center in allowed if self._level(gpu, center) != "NONE")
        return next(free, None)

    def list_gpus(self, query: GpuQuery) -> dict[str, Any]:
        """Return the answer of `GET /v2/catalog/gpus`."""
        query.check()
        shown = [self._describe(gpu, query) for gpu in self.gpus.values()]
        if query.country_codes is not None:
            shown = [gpu for gpu in shown if "dataCenters" in gpu]
        return {"gpus": shown}

    def gpu(self, gpu_id: str, query: GpuQuery) -> dict[str, Any]:
        """Return the answer of `GET /v2/catalog/gpus/{id}`.

        Raises:
            ProblemError: there is no such GPU type.
        """
        query.check()
        if gpu_id not in self.gpus:
            raise ProblemError(404, "There is no such GPU type.")
        return self._describe(self.gpus[gpu_id], query)

    def list_data_centers(self, query: DataCenterQuery) -> dict[str, Any]:
        """Return the answer of `GET /v2/catalog/datacenters`."""
        fitting = [
            center
            for center in self.data_centers.values()
            if (query.regions is None or center.region in query.regions)
            and set(query.network_volume_types or ()) <= set(center.volume_types)
            and not query.compliance
            and query.global_network is not True
        ]
        with_gpus = "GPU_AVAILABILITY" in (query.include or ())
        return {"dataCenters": [self._describe_center(center, with_gpus=with_gpus) for center in fitting]}

    def _level(self, gpu_id: str, center: str) -> Stock:
        return self._stock.get((gpu_id, center), "HIGH" if center == "US-KS-2" else "MEDIUM")

    def _describe(self, gpu: GpuType, query: GpuQuery) -> dict[str, Any]:
        pod_price = 1.0 if gpu.usd_per_hour is None else gpu.usd_per_hour
        price = {"secure": round(0.6 * pod_price, 2), "community": round(0.5 * pod_price, 2)}
        shown = {
            "id": gpu.id,
            "name": gpu.name,
            "pool": gpu.pool,
            "manufacturer": gpu.manufacturer,
            "memory": gpu.memory,
            "secure": True,
            "community": False,
            "price": price if gpu.usd_per_hour is None else {**price, "serverless": gpu.usd_per_hour},
            "maxCount": {"secure": 8, "community": 0},
        }
        return {**shown, **self._availability(gpu, query)} if query.include else shown

    def _availability(self, gpu: GpuType, query: GpuQuery) -> dict[str, Any]:
        versions = _fitting_cuda_versions(query)
        offered = gpu.pool is not None and query.cloud != "COMMUNITY" and query.count <= 8 and bool(versions)
        levels = {
            center.id: self._level(gpu.id, center.id)
            for center in self.data_centers.values()
            if offered and (query.country_codes is None or center.country in query.country_codes)
        }
        best = max(levels.values(), key=_LEVELS.index, default="NONE")
        found: dict[str, Any] = {"availability": best}
        if best != "NONE":
            found["dataCenters"] = [
                {"id": center, "name": self.data_centers[center].name, "availability": level}
                for center, level in levels.items()
            ]
        if offered and gpu.manufacturer == "NVIDIA":
            found["cudaVersions"] = [{"version": version, "available": best != "NONE"} for version in versions]
        return found

    def _describe_center(self, center: DataCenter, *, with_gpus: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "id": center.id,
            "name": center.name,
            "region": center.region,
            "globalNetwork": False,
            "networkVolumeTypes": list(center.volume_types),
            "compliance": [],
        }
        if with_gpus:
            shown["gpuAvailability"] = [
                {"id": gpu.id, "name": gpu.name, "availability": self._level(gpu.id, center.id)}
                for gpu in self.gpus.values()
            ]
        return shown


def _fitting_cuda_versions(query: GpuQuery) -> list[str]:
    if query.cuda_versions is not None:
        return [version for version in _CUDA_VERSIONS if version in query.cuda_versions]
    lowest = _numbers(query.min_cuda_version or "0")
    return [version for version in _CUDA_VERSIONS if _numbers(version) >= lowest]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
