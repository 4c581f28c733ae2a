"""What a place costs, and whether its GPUs can hold a job: the price table against the routing table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.words import counted
from lora_worker.configuration.contradictions import LEAST_USEFUL_SECONDS
from lora_worker.configuration.settings import Settings
from lora_worker.errors import SettingsError
from lora_worker.launchers.places import Place, Places, is_newer_than_image
from lora_worker.launchers.routing import Wanted
from lora_worker.launchers.routing_table import MOST_PRIORITY_CHARACTERS, VARIABLE, RoutingTable, in_sentences
from lora_worker.money.guide import holds, needed_memory_gb, shards_of, why_not_bf16
from lora_worker.money.pricing import GpuPrice, affordable_seconds, find_gpu, plain_name
from lora_worker.money.speeds import load_throughput
from lora_worker.money.terms import PlaceTerms, Terms


def price_at(place: Place, prices: tuple[GpuPrice, ...], asked: str | None) -> GpuPrice | None:
    """Return the GPU that a job gets at a place, at the place's price: its own, or the one that the job asks for.

    None if that GPU is not in the price table.
    """
    price = find_gpu(prices, place.gpu_type or asked)
    if price is None or place.price_per_hour is None:
        return price
    return replace(price, price_per_hour=place.price_per_hour)


def check_table(settings: Settings, table: RoutingTable, places: Places, prices: tuple[GpuPrice, ...]) -> None:
    """Refuse places of a routing table at which no job could be launched, and rules that no job can match.

    Raises:
        SettingsError: a GPU of an endpoint or of a rule is not in the price table, or the most that a job may cost buys
            too little at a place.
    """
    known = ", ".join(each.type for each in prices)
    wrong = [fault for place in places.all if (fault := _place_fault(settings, place, prices, known))]
    # A rule's GPU is compared with a job's as a whole, not by its parts.
    spellings = {name for price in prices for name in (plain_name(price.type), *price.names)}
    wrong += [
        f"rule {number} of [[rules]]: gpu_type is not in the price table; choose one of {known}"
        for number, rule in enumerate(table.rules, 1)
        if rule.gpu_type is not None and plain_name(rule.gpu_type) not in spellings
    ]
    if wrong:
        raise SettingsError(f"{VARIABLE}: {settings.routes}, {in_sentences(wrong)}")


def _place_fault(settings: Settings, place: Place, prices: tuple[GpuPrice, ...], known: str) -> str | None:
    where = f"[endpoints.{place.name}]"
    price = price_at(place, prices, None)
    if price is None and place.gpu_type:
        return f"{where}: gpu_type is not in the price table; choose one of {known}"
    hourly = price.price_per_hour if price else min(each.price_per_hour for each in prices)
    seconds = affordable_seconds(settings.max_cost_per_job, price_per_hour=hourly, gpu_count=place.gpu_count)
    if seconds < LEAST_USEFUL_SECONDS:
        return (
            f"{where}: LORA_WORKER_MAX_COST_PER_JOB buys {seconds:.0f} seconds there, and no job is launched for less "
            f"than {LEAST_USEFUL_SECONDS:.0f}: raise it, or take the endpoint away"
        )
    return None


def parameters_of(base_model: str) -> float | None:
    """Return how many parameters a base model has, in billions; None where nothing is known of it."""
    known: Mapping[str, Any] = load_throughput()["models"]
    return float(known[base_model]["total"]) if base_model in known else None


def wanted_of(
    chosen: Hyperparameters, gpu: GpuConfig, *, user: object, gpu_config: object, prices: tuple[GpuPrice, ...]
) -> Wanted:
    """Return what the rules of the routing table may ask of a job; `gpu_config` is its column, unchecked."""
    asked = find_gpu(prices, gpu.type)
    priority = gpu_config.get("priority") if isinstance(gpu_config, dict) else None
    base_model = chosen.base_model or ""
    return Wanted(
        base_model=base_model,
        parameters=parameters_of(base_model),
        method=chosen.method,
        gpu_names=frozenset({plain_name(gpu.type), *((plain_name(asked.type), *asked.names) if asked else ())}),
        gpu_count=gpu.count,
        user=str(user),
        priority=priority[:MOST_PRIORITY_CHARACTERS] if isinstance(priority, str) else None,
    )


def unfit_places(
    places: Places, chosen: Hyperparameters, gpu: GpuConfig, prices: tuple[GpuPrice, ...]
) -> dict[str, str]:
    """Return the places that can't hold a job, by name, each with the reason."""
    reasons = {place.name: _why_unfit(place, chosen, gpu, prices) for place in places.all}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_unfit(place: Place, chosen: Hyperparameters, gpu: GpuConfig, prices: tuple[GpuPrice, ...]) -> str | None:
    if gpu.count > place.gpu_count:
        return f"it has {counted(place.gpu_count, 'GPU')}, and the job asks for {gpu.count}"
    price = price_at(place, prices, gpu.type)
    if price is None:
        return None  # the preflight says so
    if is_newer_than_image(price.type) and not place.takes_newer_gpus:
        return f"its image has no kernels for a {price.type}"
    shards = shards_of(chosen, gpu)
    needed = needed_memory_gb(chosen.base_model or "", gpus=shards)
    if needed is not None and price.offered and not holds(price.memory_gb, needed):
        each = "each " if gpu.count > 1 else ""
        of_each = " of each GPU" if shards > 1 else ""
        return f"the training takes about {needed:g} GB{of_each}, and {each}{price.type} has {price.memory_gb}"
    return why_not_bf16(chosen.base_model, price, gpus=shards) if chosen.quantization == "bf16" else None


def terms_at(terms: Terms, price: GpuPrice, gpu_count: int) -> Terms:
    """Return the terms of a place with so many of this GPU, at this price."""
    gpus = tuple(
        gpu.model_copy(update={"price_per_hour": price.price_per_hour}) if gpu.type == price.type else gpu
        for gpu in terms.gpus
    )
    return terms.model_copy(update={"gpus": gpus, "endpoint_gpu_type": price.type, "endpoint_gpu_count": gpu_count})


def terms_of_places(terms: Terms, places: Places, prices: tuple[GpuPrice, ...]) -> Terms:
    """Return the terms with which the application estimates, where there are several places.

    Where all have the same GPUs at one price, that is what every job gets. Else only its launch decides where it goes:
    its estimate ranges over all places that have the GPUs it asks for, and a day's budgets reserve what it may cost at
    the dearest of all, those with fewer GPUs included (`training_estimates` in SQL).
    """
    first = places.default
    kinds = dict.fromkeys((place.gpu_type, place.gpu_count, place.price_per_hour) for place in places.all)
    price = price_at(first, prices, None)
    if len(kinds) == 1 and price is not None:
        return terms_at(terms, price, first.gpu_count)
    there = tuple(PlaceTerms(gpu_type=gpu, gpu_count=count, price_per_hour=usd) for gpu, count, usd in kinds)
    return terms.model_copy(update={"endpoint_gpu_type": None, "endpoint_gpu_count": first.gpu_count, "places": there})
