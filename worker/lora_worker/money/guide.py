"""Which card a base model needs, and what that costs: the memory of its training against the price table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.names import nearest
from lora_worker.errors import ArgumentError
from lora_worker.money.estimate import Range
from lora_worker.money.pricing import GpuPrice, find_gpu, plain_name
from lora_worker.money.speeds import load_throughput
from lora_worker.money.terms import SpeedSource, Terms

_USABLE_SHARE = 0.92
"""The part of a card's memory that a training gets: the driver and other processes have the rest."""
_WITHOUT_BF16 = frozenset({"V100-32GB"})
"""Cards of the price table that are older than the Ampere generation."""
_NEAR = 0.5


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU that can hold the training of a base model; prices in USD."""

    gpu: str
    memory_gb: int
    price_per_hour: float
    usd_per_million_tokens: Range
    """Training alone, without the time for loading and uploading."""
    speed_source: SpeedSource


@dataclass(frozen=True, slots=True)
class Needs:
    """What a base model needs, and the cards that have it, the cheapest training first."""

    base_model: str
    needed_gb: float
    cards: tuple[Card, ...]


def needed_memory_gb(base_model: str, *, gpus: int = 1) -> float | None:
    """Return how much memory a training of a base model takes of each of its GPUs, in GB; None if it is not known.

    Several GPUs hold a part of the base's layers each, and two whole layers while they compute.
    """
    known: dict[str, float] = load_throughput()["memory_gb"]
    needed = known.get(base_model)
    return None if needed is None else round(needed - _spared_gb(base_model, gpus), 1)


def _spared_gb(base_model: str, gpus: int, *, bits: int = 4) -> float:
    """How much less a training takes of each of several GPUs, whose table is of bases in 4 bits."""
    table = load_throughput()
    layers, gathered = (table[name].get(base_model, 0.0) * bits / 4 for name in ("layers_gb", "gathered_gb"))
    return float(max(layers * (1 - 1 / gpus) - gathered, 0)) if gpus > 1 else 0.0


def shards_of(chosen: Hyperparameters, gpu: GpuConfig) -> int:
    """Over how many GPUs the trainer shards the base of a job where one has no room; 1: it doesn't, as with DoRA."""
    return 1 if chosen.use_dora else gpu.count


def holds(memory_gb: float, needed_gb: float) -> bool:
    """Tell whether a card of this memory can hold a training that needs so much."""
    return memory_gb * _USABLE_SHARE >= needed_gb


def why_not_bf16(base_model: str | None, price: GpuPrice, *, gpus: int = 1) -> str | None:
    """Return why a base model can't be trained unquantised on cards, as the end of a sentence; None where it may fit.

    A card that is not offered is served by a larger one, so nothing is known of its memory.
    """
    least: float | None = load_throughput()["least_bf16_gb"].get(base_model)
    if price.type in _WITHOUT_BF16:
        return f"{price.type} can't compute in bf16"
    if least is None or not price.offered:
        return None
    least = round(least - _spared_gb(base_model or "", gpus, bits=16), 1)
    if least * 1e9 <= price.memory_gb * 2**30:
        return None
    of_each = " of each GPU" if gpus > 1 else ""
    return f"{base_model} takes at least {least:g} GB{of_each} in bf16, and {price.type} has {price.memory_gb}"


def needs_of(base_model: str, terms: Terms, prices: Iterable[GpuPrice]) -> Needs:
    """Return which offered cards can hold the training of a base model.

    Raises:
        ArgumentError: nothing is known of the model; the text names those that are, and which may be meant.
    """
    known: dict[str, float] = load_throughput()["memory_gb"]
    if base_model not in known:
        raise ArgumentError(f"nothing is known of {_unknown(base_model, known)}")
    needed = known[base_model]
    held = [price for price in prices if price.offered and holds(price.memory_gb, needed)]
    cards = [_card(price, base_model, terms) for price in held]
    cards.sort(key=lambda card: (card.usd_per_million_tokens.high, card.price_per_hour))
    return Needs(base_model, needed, tuple(cards))


def _card(price: GpuPrice, base_model: str, terms: Terms) -> Card:
    gpu = next(gpu for gpu in terms.gpus if gpu.type == price.type)
    speed, million = terms.speed(base_model, gpu), 1e6 * price.price_per_hour / 3600
    return Card(
        price.type,
        price.memory_gb,
        price.price_per_hour,
        Range(round(million / speed.high, 3), round(million / speed.low, 3)),
        speed.source,
    )


def check_model(base_model: str, terms: Terms, allowed: Iterable[str]) -> None:
    """Refuse a base model whose size is not known and that the worker does not offer.

    Raises:
        ArgumentError: the text names the known ones, and which may be meant.
    """
    known = dict.fromkeys([*terms.models, *allowed])
    if base_model not in known:
        raise ArgumentError(f"--base-model: nothing is known of {_unknown(base_model, known)}")


def check_card(gpu_type: str, base_model: str, terms: Terms, prices: tuple[GpuPrice, ...]) -> None:
    """Refuse a GPU that is not in the price table, and one that can't hold the training of the base model.

    Raises:
        ArgumentError: the text names the GPUs that can, and which may be meant.
    """
    price = find_gpu(prices, gpu_type)
    if price is None:
        near = nearest(plain_name(gpu_type), [name for gpu in prices for name in gpu.names], cutoff=_NEAR)
        meant = find_gpu(prices, near)
        hint = f"; {meant.type} may be meant" if meant else ""
        known = ", ".join(gpu.type for gpu in prices)
        raise ArgumentError(f"--gpu: {gpu_type!r} is not in the price table{hint}. It has {known}.")
    needed = needed_memory_gb(base_model)
    if needed is not None and not holds(price.memory_gb, needed):
        larger = ", ".join(card.gpu for card in needs_of(base_model, terms, prices).cards)
        raise ArgumentError(
            f"--gpu: a training of {base_model} takes about {needed:g} GB, and {price.type} has {price.memory_gb}; "
            f"choose one of {larger}"
        )


def _unknown(base_model: str, known: Iterable[str]) -> str:
    """Name an unknown model, the one that may be meant, and the known ones."""
    names = list(known)
    # People leave out the organisation, or write small letters.
    spelt = {name.lower(): name for name in names} | {name.lower().rpartition("/")[2]: name for name in names}
    near = nearest(base_model.lower().rpartition("/")[2], spelt, cutoff=_NEAR)
    hint = f"; {spelt[near]} may be meant" if near else ""
    return f"the base model {base_model[:100]!r}{hint}. Known are {', '.join(names)}."
