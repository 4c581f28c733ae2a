"""Computes what a run is billed, from the clocks of launcher and database and the GPUs of the endpoint.

A container may report any number of seconds and any GPU. If its report contradicts these sources, that is logged, but
it does not change the bill. The SQL function `training_bill_run` limits each bill again, by the time that has passed
and by the job's limit. All functions here are pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lora_worker.money.pricing import GpuPrice, accrued_cost, find_gpu


class Rate(BaseModel):
    """What an hour of a run costs, and the most that its job may cost, in USD."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    gpu_type: str
    gpu_count: int = Field(ge=1)
    price_per_hour: float = Field(ge=0)
    """The price of one GPU for an hour."""
    max_cost: float = Field(gt=0)
    """The limit for all runs of the job together."""

    @classmethod
    def at(cls, price: GpuPrice, *, gpu_count: int, max_cost: float) -> Rate:
        """Return the rate for `gpu_count` GPUs of the price table; `max_cost` is the job's limit."""
        return cls(gpu_type=price.type, gpu_count=gpu_count, price_per_hour=price.price_per_hour, max_cost=max_cost)

    @property
    def hourly(self) -> float:
        """Return the price of all GPUs for an hour."""
        return self.price_per_hour * self.gpu_count

    def cost(self, seconds: float, *, spent: float = 0.0, fee: float = 0.0) -> float:
        """Return the cost of the job so far, in USD to the cent.

        `seconds` is the GPU time of this run, `spent` what earlier runs have cost, and `fee` the price for storing the
        model. The result is at most `max_cost`, and never less than `spent`.
        """
        accrued = accrued_cost(seconds, price_per_hour=self.price_per_hour, gpu_count=self.gpu_count)
        return round(max(min(spent + fee + accrued, self.max_cost), spent), 2)


def asked_gpu(gpu_config: Any) -> str | None:
    """Return the GPU that a job asks for; None if it names none. `gpu_config` is the unchecked value of its column."""
    wanted = (gpu_config.get("type") or gpu_config.get("gpu_type")) if isinstance(gpu_config, dict) else None
    return wanted if isinstance(wanted, str) else None


@dataclass(frozen=True, slots=True)
class Measured:
    """The GPU seconds of a run, measured by clocks that no container can change."""

    launcher: float = 0.0
    """The longest execution time that the launcher reported."""
    heartbeats: float = 0.0
    """The time from check-in to the last heartbeat, by the database's clock."""
    wall: float | None = None
    """The time since the launch was sent, by the database's clock; None if that is not known."""
    is_final: bool = False
    """Whether `launcher` is the launcher's measure of a launch that has ended."""
    billed: float | None = None
    """What the launcher itself bills of a launch that has ended; None if it does not say."""

    def seconds(self, claimed: float | None = None, *, patience: float = 0.0) -> float:
        """Return the seconds to bill: the longest measure, but never more than the time since the launch.

        Where the launcher says what it bills itself, that counts: a spot instance costs less than its time.

        `claimed` is what the container reports. It counts only if the launcher has no final measure, and only up to
        `patience` seconds beyond the last heartbeat: a run that is silent for longer counts as lost.
        """
        known = max(self.launcher, self.heartbeats) if self.billed is None else self.billed
        if claimed is not None and not self.is_final and self.billed is None:
            known = max(known, min(claimed, known + patience))
        return known if self.wall is None else min(known, self.wall)


def contradiction(rate: Rate, gpu_type: str | None, gpu_count: int | None, prices: tuple[GpuPrice, ...]) -> str | None:
    """Describe how the GPUs that a container reports differ from those that are billed; None if they are the same."""
    found = find_gpu(prices, gpu_type)
    counted = gpu_count or rate.gpu_count
    if found is None or (found.type == rate.gpu_type and counted == rate.gpu_count):
        return None
    return f"the trainer found {counted} × {found.type}, and {rate.gpu_count} × {rate.gpu_type} is billed"
