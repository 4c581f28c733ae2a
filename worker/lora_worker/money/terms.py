"""The terms of a worker: prices, speeds, sizes of models and limits, from which costs are estimated.

Each worker writes its terms to the database when it starts (table `training_terms`). So the SQL function that the
application calls and the worker's own estimate use the same numbers.
"""

from __future__ import annotations

import math
import tomllib
from functools import lru_cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_worker.configuration.settings import Settings
from lora_worker.money.pricing import GpuPrice, find_gpu

_FROZEN = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Gpu(BaseModel):
    """A GPU of the price table, with its price in USD per hour.

    `fast` and `slow` are the limits of its expected training speed, in tokens per second of the reference model.
    """

    model_config = _FROZEN

    type: str
    names: tuple[str, ...]
    """Parts of names that mean this GPU, in small letters and digits (`plain_name`)."""
    price_per_hour: float
    memory_gb: int
    fast: float
    slow: float


class Size(BaseModel):
    """The size of a model in billions of parameters: `active` are those that process one token, `total` are all."""

    model_config = _FROZEN

    active: float
    total: float


class Overhead(BaseModel):
    """Seconds that a training takes in addition to its steps, once and for each epoch."""

    model_config = _FROZEN

    once: float
    each_epoch: float


class MethodWork(BaseModel):
    """What a training method does with an example, beside what sft does with it."""

    model_config = _FROZEN

    sequences: int
    """How many sequences an example has, each with the whole prompt."""
    once: float
    """What is done once with each token, in units of an epoch of sft."""
    each_epoch: float

    def share(self, epochs: int) -> float:
        """The work of an epoch on a token, in units of sft, with its part of what is done once."""
        return self.each_epoch + self.once / epochs


class Terms(BaseModel):
    """All terms. The database stores them as `model_dump(mode="json")`."""

    model_config = _FROZEN

    gpus: tuple[Gpu, ...]
    endpoint_gpu_type: str | None
    """The GPU type of the endpoint, which every job gets; None if each job gets the type that it asks for."""
    endpoint_gpu_count: int
    models: dict[str, Size]
    methods: dict[str, MethodWork]
    """By the values of `Hyperparameters.method`."""
    reference: Size
    default_base_model: str
    default_gpu_type: str
    tokens_per_pair: int
    overhead_low: Overhead
    overhead_high: Overhead
    storage_fee: float = Field(ge=0)
    """The price in USD for storing a finished model."""
    max_cost_per_job: float
    max_cost_per_day: float | None = None
    """The most that all trainings of a UTC day may cost together; None: no limit. A claim in SQL keeps to it."""
    max_cost_per_user_per_day: float | None = None
    """The same for one user."""
    max_run_seconds: float
    max_queued_per_user: int
    hyperparameters: dict[str, float]
    """The defaults for hyperparameters that a job does not set."""
    assumptions: tuple[str, ...]

    def gpu(self, wanted: str | None) -> Gpu | None:
        """Return the GPU that a job gets if it asks for the type `wanted`; None if the type is unknown."""
        return find_gpu(self.gpus, self.endpoint_gpu_type or wanted)

    def size(self, base_model: str | None) -> Size:
        """Return the size of a base model; that of the reference model if it is unknown."""
        return self.models.get(base_model or self.default_base_model, self.reference)


@lru_cache(maxsize=1)
def load_throughput() -> dict[str, Any]:
    """Load the measured speeds from `worker/lora_worker/money/throughput.toml`."""
    return tomllib.loads((files("lora_worker.money") / "throughput.toml").read_text(encoding="utf-8"))


def make_terms(settings: Settings, prices: tuple[GpuPrice, ...]) -> Terms:
    """Build the terms from settings, prices and the table of measured speeds."""
    table = load_throughput()
    reference = table["reference_billions"]
    return Terms(
        gpus=tuple(_gpu(price, table) for price in prices),
        endpoint_gpu_type=settings.endpoint_gpu_type,
        endpoint_gpu_count=settings.endpoint_gpu_count,
        models=table["models"],
        methods=table["methods"],
        reference=Size(active=reference, total=reference),
        default_base_model=settings.default_base_model,
        default_gpu_type=GpuConfig().type,
        tokens_per_pair=table["tokens_per_pair"],
        overhead_low=table["overhead"]["low"],
        overhead_high=table["overhead"]["high"],
        storage_fee=settings.storage_fee,
        max_cost_per_job=settings.max_cost_per_job,
        max_cost_per_day=settings.max_cost_per_day,
        max_cost_per_user_per_day=settings.max_cost_per_user_per_day,
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
    # The operator's price table may have a GPU that was never measured. It gets the whole range of known speeds.
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
    sentences = [
        f"Tokens are those of the dataset's row, or {table['tokens_per_pair']} a pair where they were not counted.",
        f"Speeds are of {table['updated']}: a {table['reference_billions']:g}B base, scaled by the base's parameters,"
        f" between {table['faster']:g} and {table['slower']:g} times the table's figure.",
        f"Loading, evaluating and uploading take {_minutes(table['overhead']['low'], 1)} to"
        f" {_minutes(table['overhead']['high'], 1)} minutes with one epoch.",
    ]
    if settings.storage_fee:
        sentences.append(f"${settings.storage_fee:.2f} for storing the model are included.")
    return tuple(sentences)


def _minutes(overhead: dict[str, float], epochs: int) -> int:
    return math.ceil((overhead["once"] + overhead["each_epoch"] * epochs) / 60)
