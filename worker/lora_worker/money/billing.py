"""What a run is billed for: the launcher's and the database's clocks, and the endpoint's GPUs. Pure functions.

A container may say what it likes of its seconds and its GPUs: it is told in the log, and never billed. The database
bounds each bill once more (`training_bill_run`), by the wall clock and by the job's cap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lora_worker.money.pricing import GpuPrice, accrued_cost, find_price


class Rate(BaseModel):
    """What a second of a run costs, and the most that its job may cost. USD."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    gpu_type: str
    gpu_count: int = Field(ge=1)
    price_per_hour: float = Field(gt=0)
    """Of one GPU."""
    max_cost: float = Field(gt=0)
    """Of the job, all its runs together."""

    @classmethod
    def at(cls, price: GpuPrice, *, gpu_count: int, max_cost: float) -> Rate:
        """The rate of so many GPUs of the price table."""
        return cls(gpu_type=price.type, gpu_count=gpu_count, price_per_hour=price.price_per_hour, max_cost=max_cost)

    @property
    def hourly(self) -> float:
        """The price of all GPUs for an hour."""
        return self.price_per_hour * self.gpu_count

    def cost(self, seconds: float, *, spent: float = 0.0, fee: float = 0.0) -> float:
        """What the job has cost with so many GPU seconds of this run, beside what earlier runs have cost."""
        accrued = accrued_cost(seconds, price_per_hour=self.price_per_hour, gpu_count=self.gpu_count)
        return round(max(min(spent + fee + accrued, self.max_cost), spent), 2)


def gpu_of(gpu_config: Any, prices: tuple[GpuPrice, ...], *, endpoint_gpu_type: str | None) -> GpuPrice | None:
    """The GPU that a job gets: the endpoint's, else the one it asks for. None for an unknown one.

    `gpu_config` is the job's column as it stands in the row.
    """
    wanted = (gpu_config.get("type") or gpu_config.get("gpu_type")) if isinstance(gpu_config, dict) else None
    return find_price(prices, endpoint_gpu_type or (wanted if isinstance(wanted, str) else None))


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a run's GPU seconds, by clocks that no container can set."""

    launcher: float = 0.0
    """The launcher's longest measure."""
    heartbeats: float = 0.0
    """From the check-in to the last heartbeat, by the database's clock."""
    wall: float | None = None
    """Since the launch was sent, by the database's clock; None where it is not known."""
    is_final: bool = False
    """Whether the launcher has measured the ended launch."""

    def seconds(self, claimed: float | None = None, *, patience: float = 0.0) -> float:
        """The seconds to bill: the longer measure, within the wall clock.

        What the container claims counts only where the launcher forgot the launch, and then not further beyond
        the last heartbeat than `patience`, after which a silent run is a lost one.
        """
        known = max(self.launcher, self.heartbeats)
        if claimed is not None and not self.is_final:
            known = max(known, min(claimed, known + patience))
        return known if self.wall is None else min(known, self.wall)


def contradiction(rate: Rate, gpu_type: str | None, gpu_count: int | None, prices: tuple[GpuPrice, ...]) -> str | None:
    """How the GPUs that a container names differ from those that its run is billed for; None where they don't."""
    found = find_price(prices, gpu_type)
    counted = gpu_count or rate.gpu_count
    if found is None or (found.type == rate.gpu_type and counted == rate.gpu_count):
        return None
    return f"the trainer found {counted} × {found.type}, and {rate.gpu_count} × {rate.gpu_type} is billed"
