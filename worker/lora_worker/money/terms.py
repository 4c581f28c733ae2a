"""The terms that this worker trains on: prices, speeds, sizes of models, limits. What an estimate stands on.

The database holds a copy (`training_terms`), which each worker writes when it starts, so that the SQL
function that the application asks and the worker's own estimate use the same numbers.
"""

from __future__ import annotations

import math
import tomllib
from functools import lru_cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lora_contract.hyperparameters import Hyperparameters
from lora_worker.configuration.settings import Settings
from lora_worker.money.pricing import GpuPrice, plain_name

_FROZEN = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Gpu(BaseModel):
    """A GPU of the price table: USD an hour, and tokens a second of the reference model, at both ends."""

    model_config = _FROZEN

    type: str
    names: tuple[str, ...]
    """Parts of names that mean it, in small letters and digits."""
    price_per_hour: float
    memory_gb: int
    fast: float
    slow: float


class Size(BaseModel):
    """Billions of parameters: those that a token passes through, and all."""

    model_config = _FROZEN

    active: float
    total: float


class Overhead(BaseModel):
    """Seconds beside the training steps."""

    model_config = _FROZEN

    once: float
    each_epoch: float


class Terms(BaseModel):
    """The whole document; `model_dump(mode="json")` is what the database holds."""

    model_config = _FROZEN

    gpus: tuple[Gpu, ...]
    endpoint_gpu_type: str | None
    """What the endpoint has, whatever a job asks for; None: what the job asks for."""
    endpoint_gpu_count: int
    models: dict[str, Size]
    reference: Size
    default_base_model: str
    tokens_per_pair: int
    overhead_low: Overhead
    overhead_high: Overhead
    storage_fee: float = Field(ge=0)
    """USD for a finished model."""
    max_cost_per_job: float
    max_run_seconds: float
    max_queued_per_user: int
    hyperparameters: dict[str, float]
    """What a job trains with where it chooses nothing."""
    assumptions: tuple[str, ...]

    def gpu(self, wanted: str | None) -> Gpu | None:
        """The GPU that a job gets who asks for this one; None where it is not known."""
        plain = plain_name(self.endpoint_gpu_type or wanted or "")
        matches = [(len(name), gpu) for gpu in self.gpus for name in gpu.names if name in plain]
        return max(matches, key=lambda match: match[0])[1] if matches else None

    def size(self, base_model: str | None) -> Size:
        """The size of a base model; the reference's where it is not known."""
        return self.models.get(base_model or self.default_base_model, self.reference)


@lru_cache(maxsize=1)
def load_throughput() -> dict[str, Any]:
    """`worker/lora_worker/money/throughput.toml`."""
    return tomllib.loads((files("lora_worker.money") / "throughput.toml").read_text(encoding="utf-8"))


def make_terms(settings: Settings, prices: tuple[GpuPrice, ...]) -> Terms:
    """The terms of a worker with these settings and prices."""
    table = load_throughput()
    reference = table["reference_billions"]
    return Terms(
        gpus=tuple(_gpu(price, table) for price in prices),
        endpoint_gpu_type=settings.endpoint_gpu_type,
        endpoint_gpu_count=settings.endpoint_gpu_count,
        models=table["models"],
        reference=Size(active=reference, total=reference),
        default_base_model=settings.default_base_model,
        tokens_per_pair=table["tokens_per_pair"],
        overhead_low=table["overhead"]["low"],
        overhead_high=table["overhead"]["high"],
        storage_fee=settings.storage_fee,
        max_cost_per_job=settings.max_cost_per_job,
        max_run_seconds=settings.max_run_seconds,
        max_queued_per_user=settings.max_queued_per_user,
        hyperparameters=Hyperparameters().model_dump(
            include={"learning_rate", "batch_size", "epochs", "rank", "dropout"}
        ),
        assumptions=_assumptions(settings, table),
    )


def _gpu(price: GpuPrice, table: dict[str, Any]) -> Gpu:
    speeds = table["tokens_per_second"]
    known = speeds.get(price.type)
    # A card of the operator's own price table, of which nothing is known but that it lies somewhere between.
    fastest, slowest = (known, known) if known else (max(speeds.values()), min(speeds.values()))
    return Gpu(
        type=price.type,
        names=price.names,
        price_per_hour=price.price_per_hour,
        memory_gb=price.memory_gb,
        fast=fastest * table["faster"],
        slow=slowest * table["slower"],
    )


def _assumptions(settings: Settings, table: dict[str, Any]) -> tuple[str, ...]:
    told = [
        f"Tokens are those of the dataset's row, or {table['tokens_per_pair']} a pair where they were not counted.",
        f"Speeds are of {table['updated']}: a {table['reference_billions']:g}B base, scaled by the base's parameters,"
        f" between {table['faster']:g} and {table['slower']:g} times the table's figure.",
        f"Loading, evaluating and uploading take {_minutes(table['overhead']['low'], 1)} to"
        f" {_minutes(table['overhead']['high'], 1)} minutes with one epoch.",
    ]
    if settings.storage_fee:
        told.append(f"${settings.storage_fee:.2f} for storing the model are included.")
    return tuple(told)


def _minutes(overhead: dict[str, float], epochs: int) -> int:
    return math.ceil((overhead["once"] + overhead["each_epoch"] * epochs) / 60)
