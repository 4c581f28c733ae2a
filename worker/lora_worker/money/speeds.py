"""Expected training speeds: those of `throughput.toml` that were measured, and what follows from them for the rest.

- A card: the reference's speed times a ratio. Where the same trainer ran on both cards that is the ratio of its speeds.
  Elsewhere the slow end takes the smaller, the fast end the larger of two ratios, of the cards' arithmetic and of their
  memory's bandwidth; but no card is taken for faster than the measured one at the slow end.
- A dense base: time grows with its parameters. One that is smaller than the reference may gain less, since small matrix
  products use less of a card: the slow end takes the geometric mean of both.
- A mixture of experts: the size of the dense base that would be as fast, from the mixture that was measured. Most of a
  step grows with the active parameters, unpacking 4-bit experts with all of them; its share rises with fewer tokens a
  pass, which is the slow end.

All functions are pure. Speeds are in tokens per second, sizes in billions of parameters.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_FROZEN = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Size(BaseModel):
    """As how large a dense base one counts, in billions of parameters: at the fast and at the slow end."""

    model_config = _FROZEN

    low: float
    high: float


class Spread(BaseModel):
    """Between which multiples of a speed an estimate ranges."""

    model_config = _FROZEN

    faster: float
    slower: float


class RunSpeed(BaseModel):
    """The median speed of an installation's own finished runs of one base model on one GPU type."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    tokens_per_second: float = Field(gt=0, lt=1e9)
    runs: int = Field(ge=1)


@lru_cache(maxsize=1)
def load_throughput() -> dict[str, Any]:
    """Load the table of measured speeds, `worker/lora_worker/money/throughput.toml`."""
    return tomllib.loads((files("lora_worker.money") / "throughput.toml").read_text(encoding="utf-8"))


def card_speed(gpu_type: str, table: Mapping[str, Any]) -> tuple[float, float]:
    """Return the slow and the fast end of a card's speed with the reference base.

    A card of the operator's own price table, of which nothing is known, gets the whole range of the others.
    """
    if gpu_type not in table["cards"]:
        ends = [card_speed(known, table) for known in table["cards"]]
        return min(slow for slow, _ in ends), max(fast for _, fast in ends)
    reference, spread = table["benchmark"][0], table["range"]
    low, high = _ratios(gpu_type, reference["gpu"], table)
    speed: float = reference["tokens_per_second"]
    return speed * low * spread["slower"], speed * high * spread["faster"]


def _ratios(gpu_type: str, reference: str, table: Mapping[str, Any]) -> tuple[float, float]:
    """Return how much of the reference card's speed another has, at least and at most."""
    ran = table["same_trainer"]
    if gpu_type in ran:
        return ran[gpu_type] / ran[reference], ran[gpu_type] / ran[reference]
    card, measured = table["cards"][gpu_type], table["cards"][reference]
    ratios = [card[name] / measured[name] for name in ("tflops", "gb_per_second")]
    return min(*ratios, 1.0), max(ratios)


def base_size(base_model: str, table: Mapping[str, Any]) -> Size:
    """Return as how large a dense base one of the table's models counts."""
    known, reference = table["models"][base_model], table["benchmark"][0]
    active, total = known["active"], known["total"]
    dense = table["models"][reference["base_model"]]["total"]
    if active == total:
        return Size(low=total, high=max(total, math.sqrt(total * dense)))
    mixture = next(run for run in table["benchmark"] if _is_mixture(table["models"][run["base_model"]]))
    its, unpacking = table["models"][mixture["base_model"]], table["unpacking"]
    as_measured: float = dense * reference["tokens_per_second"] / mixture["tokens_per_second"]
    computing = (1 - unpacking["share"]) * active / its["active"]
    unpacked = unpacking["share"] * total / its["total"]
    fewer = unpacking["tokens"] / unpacking["fewest_tokens"]
    return Size(low=as_measured * (computing + unpacked), high=as_measured * (computing + unpacked * fewer))


def _is_mixture(model: Mapping[str, float]) -> bool:
    return model["active"] < model["total"]


def benchmarked(gpu_type: str, table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the base models that were measured on a card."""
    return tuple(run["base_model"] for run in table["benchmark"] if run["gpu"] == gpu_type)
