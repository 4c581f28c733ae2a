"""GPU prices, accrued cost, and how long a job's budget lasts. Money is USD, time is seconds."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lora_worker.errors import SettingsError

LEAST_USEFUL_SECONDS = 300.0
"""GPU time below which no training comes to anything."""


@dataclass(frozen=True, slots=True)
class GpuPrice:
    """A GPU of the price table; the price is for one of them and an hour."""

    type: str
    price_per_hour: float
    memory_gb: int
    names: tuple[str, ...]


def plain_name(name: str) -> str:
    """A GPU's name as it is compared: small letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _parse(entry: dict[str, Any]) -> GpuPrice:
    price = float(entry["price_per_hour"])
    if not 0 < price < 1000:
        raise ValueError(f"price_per_hour of {entry['type']} must lie between 0 and 1000")
    return GpuPrice(str(entry["type"]), price, int(entry["memory_gb"]), tuple(map(plain_name, entry["names"])))


@lru_cache(maxsize=4)
def load_prices(path: Path | None = None) -> tuple[GpuPrice, ...]:
    """The price table: a file of the operator's own, else `worker/lora_worker/money/prices.toml`.

    Raises:
        SettingsError: the file can't be read; says what is wrong in it.
    """
    source = path or files("worker") / "prices.toml"
    try:
        entries = tomllib.loads(source.read_text(encoding="utf-8"))["gpu"]
        return tuple(_parse(entry) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"LORA_WORKER_PRICE_TABLE: {source} is not a usable price table ({error}).") from None


def find_price(prices: tuple[GpuPrice, ...], gpu: object) -> GpuPrice | None:
    """The entry for the application's or NVML's name of a GPU; None for an unknown one, and for what is no name."""
    if not isinstance(gpu, str):
        return None
    plain = plain_name(gpu)
    matches = [(len(name), price) for price in prices for name in price.names if name in plain]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def accrued_cost(gpu_seconds: float, *, price_per_hour: float, gpu_count: int) -> float:
    """USD for GPU seconds, to the cent, as the columns keep it."""
    return round(gpu_seconds / 3600 * price_per_hour * gpu_count, 2)


def affordable_seconds(budget: float, *, price_per_hour: float, gpu_count: int) -> float:
    """How long a budget in USD lasts on these GPUs."""
    return max(budget, 0.0) * 3600 / (price_per_hour * gpu_count)
