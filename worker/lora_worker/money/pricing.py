"""The price table of GPUs, costs, and how long a budget lasts. Money is in USD, time in seconds."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lora_worker.configuration.contradictions import LEAST_USEFUL_SECONDS
from lora_worker.errors import SettingsError

if TYPE_CHECKING:
    from lora_worker.configuration.settings import Settings


@dataclass(frozen=True, slots=True)
class GpuPrice:
    """A GPU of the price table. The price is for one GPU and one hour; `names` are parts of names that mean it."""

    type: str
    price_per_hour: float
    memory_gb: int
    names: tuple[str, ...]
    offered: bool = True
    """Whether an endpoint can have it. Others are only names that the application's pages know."""


def plain_name(name: str) -> str:
    """Reduce a GPU's name to small letters and digits, so that different spellings can be compared."""
    # Other letters are removed first: what their small form is depends on the locale of the database.
    return re.sub(r"[^A-Za-z0-9]", "", name).lower()


def _parse(entry: dict[str, Any]) -> GpuPrice:
    price = float(entry["price_per_hour"])
    if not 0 <= price < 1000:
        raise ValueError(f"price_per_hour of {entry['type']} must be at least 0 and less than 1000")
    names = tuple(map(plain_name, entry["names"]))
    return GpuPrice(str(entry["type"]), price, int(entry["memory_gb"]), names, bool(entry.get("offered", True)))


@lru_cache(maxsize=4)
def load_prices(path: Path | None = None) -> tuple[GpuPrice, ...]:
    """Load the price table: the operator's file if `path` is given, else `worker/lora_worker/money/prices.toml`.

    Raises:
        SettingsError: the file can't be read, or an entry is wrong; the text says which.
    """
    source = path or files("lora_worker.money") / "prices.toml"
    try:
        entries = tomllib.loads(source.read_text(encoding="utf-8"))["gpu"]
        return tuple(_parse(entry) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"LORA_WORKER_PRICE_TABLE: {source} is not a usable price table ({error}).") from None


class _Named(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...


NamedGpu = TypeVar("NamedGpu", bound=_Named)


def find_gpu(gpus: Iterable[NamedGpu], name: object) -> NamedGpu | None:
    """Find the entry of a table for a GPU's name, as the application or NVML writes it.

    An entry matches if one of its `names` is part of the name; of several the one with the longest match is returned.
    None if no entry matches, or `name` is no text.
    `training_gpu` in SQL finds the same, for rows that are inserted while no worker runs; a test compares the two.
    """
    if not isinstance(name, str):
        return None
    plain = plain_name(name)
    matches = [(len(part), gpu) for gpu in gpus for part in gpu.names if part in plain]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def accrued_cost(gpu_seconds: float, *, price_per_hour: float, gpu_count: int) -> float:
    """Return the cost in USD, rounded to the cent like the database's columns."""
    return round(gpu_seconds / 3600 * price_per_hour * gpu_count, 2)


def affordable_seconds(budget: float, *, price_per_hour: float, gpu_count: int) -> float:
    """Return for how many seconds a budget in USD lasts with these GPUs; infinity where they cost nothing."""
    hourly = price_per_hour * gpu_count
    return max(budget, 0.0) * 3600 / hourly if hourly else math.inf


def check_prices(settings: Settings, prices: tuple[GpuPrice, ...]) -> None:
    """Refuse settings with which no job could be launched at these prices.

    Every job would fail in its preflight otherwise, as if its user had made a mistake.

    Raises:
        SettingsError: the text names the environment variable.
    """
    card = find_gpu(prices, settings.endpoint_gpu_type)
    if settings.endpoint_gpu_type and card is None:
        known = ", ".join(price.type for price in prices)
        raise SettingsError(
            f"LORA_WORKER_ENDPOINT_GPU_TYPE is not in the price table: choose one of {known}, "
            "or name it in LORA_WORKER_PRICE_TABLE."
        )
    hourly = card.price_per_hour if card else min(price.price_per_hour for price in prices)
    bought = affordable_seconds(settings.max_cost_per_job, price_per_hour=hourly, gpu_count=settings.endpoint_gpu_count)
    if bought < LEAST_USEFUL_SECONDS:
        raise SettingsError(
            f"LORA_WORKER_MAX_COST_PER_JOB buys {bought:.0f} seconds of {settings.endpoint_gpu_count} GPUs at "
            f"${hourly:.2f} an hour, and no job is launched for less than {LEAST_USEFUL_SECONDS:.0f}: raise it."
        )
