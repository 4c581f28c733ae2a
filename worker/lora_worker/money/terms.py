"""The terms of a worker: prices, speeds, sizes of models and limits, from which costs are estimated.

Each worker writes its terms to the database when it starts (table `training_terms`). So the SQL function that the
application calls and the worker's own estimate use the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_worker.configuration.settings import Settings
from lora_worker.money.pricing import GpuPrice, find_gpu
from lora_worker.money.speeds import RunSpeed, Size, Spread, base_size, benchmarked, card_speed, load_throughput

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
    benchmarked: tuple[str, ...] = ()
    """The base models whose speed was measured on this GPU."""


SpeedSource = Literal["runs", "benchmark", "derived"]
"""Whence a speed is known: the installation's own finished runs of this base on this GPU, a measurement of it by
`make gpu`, or a calculation from the measurements of others."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The expected training speed of a base model on one GPU in tokens per second, and whence it is known."""

    low: float
    high: float
    source: SpeedSource
    runs: int = 0
    """How many finished runs of the installation it is known from."""


class Overhead(BaseModel):
    """Seconds that a training takes in addition to its steps, once and for each epoch."""

    model_config = _FROZEN

    once: float
    each_epoch: float


class MethodTerms(BaseModel):
    """What a training method does with an example, beside what sft does with it, and its defaults."""

    model_config = _FROZEN

    sequences: int
    """How many sequences an example has, each with the whole prompt."""
    once: float
    """What is done once with each token, in units of an epoch of sft."""
    each_epoch: float
    learning_rate: float
    """The default for jobs that choose none."""

    def share(self, epochs: int) -> float:
        """The work of an epoch on a token, in units of sft, with its part of what is done once."""
        return self.each_epoch + self.once / epochs


class PlaceTerms(BaseModel):
    """What a place of the routing table has and costs; None as in `Place`."""

    model_config = _FROZEN

    gpu_type: str | None
    gpu_count: int
    price_per_hour: float | None


class Terms(BaseModel):
    """All terms. The database stores them as `model_dump(mode="json")`."""

    model_config = _FROZEN

    gpus: tuple[Gpu, ...]
    endpoint_gpu_type: str | None
    """The GPU type of the endpoint, which every job gets; None if each job gets the type that it asks for."""
    endpoint_gpu_count: int
    places: tuple[PlaceTerms, ...] = ()
    """All places where a job may be launched, each kind once, if they differ: estimates range over them."""
    models: dict[str, Size]
    methods: dict[str, MethodTerms]
    """By the values of `Hyperparameters.method`."""
    reference: Size
    of_runs: Spread
    """The range around the speed of finished runs."""
    measured: dict[str, dict[str, RunSpeed]] = Field(default_factory=dict)
    """Speeds of finished runs, by base model and GPU type. The database has them; published terms have none."""
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

    def speed(self, base_model: str | None, gpu: Gpu) -> Speed:
        """Return the expected speed of a base model on one of these GPUs. An unknown base counts as the reference."""
        name = base_model or self.default_base_model
        known = self.measured.get(name, {}).get(gpu.type)
        if known is not None:
            median = known.tokens_per_second
            return Speed(median * self.of_runs.slower, median * self.of_runs.faster, "runs", known.runs)
        size = self.models.get(name, self.reference)
        source: SpeedSource = "benchmark" if name in gpu.benchmarked else "derived"
        low = gpu.slow * self.reference.high / size.high
        return Speed(low, gpu.fast * self.reference.low / size.low, source)

    def of_any_gpu(self) -> Terms:
        """Return these terms for jobs that get the GPU that they ask for, whatever the endpoint has."""
        return self.model_copy(update={"endpoint_gpu_type": None})

    def with_measured(self, base_model: str, gpu_type: str, speed: RunSpeed | None) -> Terms:
        """Return these terms with the speed of finished runs of a base on a GPU; unchanged if that is None."""
        return self if speed is None else self.model_copy(update={"measured": {base_model: {gpu_type: speed}}})


def make_terms(settings: Settings, prices: tuple[GpuPrice, ...], *, gpu_count: int | None = None) -> Terms:
    """Build the terms from settings, prices and the table of measured speeds.

    `gpu_count` is that of the place where launches go, and the largest one of several; None: as the settings say.
    """
    table = load_throughput()
    gpu_count = gpu_count or settings.endpoint_gpu_count
    reference = table["benchmark"][0]["base_model"]
    return Terms(
        gpus=tuple(_gpu(price, table) for price in prices),
        endpoint_gpu_type=settings.endpoint_gpu_type,
        endpoint_gpu_count=gpu_count,
        models={name: base_size(name, table) for name in table["models"]},
        methods={name: _method(name, work) for name, work in table["methods"].items()},
        reference=base_size(reference, table),
        of_runs=table["range"]["of_runs"],
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
        assumptions=_assumptions(settings, table, gpu_count),
    )


def _method(name: str, work: dict[str, Any]) -> MethodTerms:
    return MethodTerms(**work, learning_rate=Hyperparameters.model_validate({"method": name}).learning_rate)


def _gpu(price: GpuPrice, table: dict[str, Any]) -> Gpu:
    slow, fast = card_speed(price.type, table)
    return Gpu(
        type=price.type,
        names=price.names,
        price_per_hour=price.price_per_hour,
        memory_gb=price.memory_gb,
        fast=fast,
        slow=slow,
        benchmarked=benchmarked(price.type, table),
    )


def _assumptions(settings: Settings, table: dict[str, Any], gpu_count: int) -> tuple[str, ...]:
    sentences = [
        f"Tokens are those of the dataset's row, or {table['tokens_per_pair']} a pair where they were not counted.",
        f"Loading, evaluating and uploading take {_minutes(table['overhead']['low'], 1)} to"
        f" {_minutes(table['overhead']['high'], 1)} minutes with one epoch.",
    ]
    if gpu_count > 1:
        sentences.append(
            "All GPUs of the machine are billed, however many of them the job asks for. Several shorten the lowest "
            "time only: how much they lose by waiting for each other was not measured."
        )
    if settings.storage_fee:
        sentences.append(f"${settings.storage_fee:.2f} for storing the model are included.")
    return tuple(sentences)


def _minutes(overhead: dict[str, float], epochs: int) -> int:
    return math.ceil((overhead["once"] + overhead["each_epoch"] * epochs) / 60)
