"""What RunPod offers for the pools of a deployment: cards, price per hour, and how many are free."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lora_contract.names import nearest
from lora_worker.deployment.resources import GpuType
from lora_worker.deployment.survey import Survey
from lora_worker.deployment.tables import EndpointTable
from lora_worker.errors import DeploymentError

_STOCK = ("NONE", "LOW", "MEDIUM", "HIGH")


@dataclass(frozen=True, slots=True)
class PoolOffer:
    """A pool as it is offered now. The price is in USD for a worker's hour; None where the catalog tells none."""

    pool: str
    gpus: tuple[str, ...]
    memory_gb: int | None
    usd_per_hour: float | None
    stock: str
    """NONE, LOW, MEDIUM or HIGH, in the deployment's data centres; empty where the catalog does not say."""


def types_of(gpu_types: Iterable[GpuType], pools: Collection[str], excluded: Collection[str] = ()) -> list[GpuType]:
    """Return the GPU types on which a worker may be placed: those of the pools that are not excluded."""
    return [gpu for gpu in gpu_types if gpu.pool in pools and gpu.id not in excluded]


def offers(specification: EndpointTable, survey: Survey) -> tuple[PoolOffer, ...]:
    """Return what is offered for each pool of a specification.

    Raises:
        DeploymentError: the catalog has no such pool or GPU type, or all types of the pools are excluded.
    """
    wanted = specification.gpu
    pools = {gpu.pool for gpu in survey.gpu_types if gpu.pool}
    for pool in wanted.pools:
        if pool not in pools:
            raise DeploymentError(f"gpu.pools: RunPod has no pool {pool}{_instead(pool, pools)}")
    within = types_of(survey.gpu_types, wanted.pools)
    types = {gpu.id for gpu in within if gpu.id}
    for excluded in wanted.excluded_types:
        if excluded not in types:
            raise DeploymentError(
                f"gpu.excluded_types: {excluded} is no GPU type of these pools{_instead(excluded, types)}"
            )
    left = types_of(survey.gpu_types, wanted.pools, wanted.excluded_types)
    if not left:
        raise DeploymentError("gpu.excluded_types leaves no GPU type in gpu.pools: take one out")
    return tuple(
        _offer(pool, [gpu for gpu in left if gpu.pool == pool], wanted.count, set(specification.placement))
        for pool in wanted.pools
        if any(gpu.pool == pool for gpu in left)
    )


def all_offers(gpu_types: Iterable[GpuType]) -> tuple[PoolOffer, ...]:
    """Return what is offered for each pool of the catalog, for workers of one GPU anywhere; the cheapest first."""
    pools: dict[str, list[GpuType]] = {}
    for gpu in gpu_types:
        if gpu.pool:
            pools.setdefault(gpu.pool, []).append(gpu)
    made = [_offer(pool, gpus, 1, set()) for pool, gpus in pools.items()]
    return tuple(sorted(made, key=lambda offer: (offer.usd_per_hour or 0, offer.pool)))


def _instead(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = nearest(name, known)
    if near:
        return f"; {near} may be meant"
    return f": choose of {', '.join(known[:30])}" if known else ""


def _offer(pool: str, gpus: list[GpuType], count: int, places: set[str]) -> PoolOffer:
    prices = [gpu.price.serverless for gpu in gpus if gpu.price and gpu.price.serverless is not None]
    memories = [gpu.memory for gpu in gpus if gpu.memory]
    stocks = [stock for gpu in gpus for stock in _stocks(gpu, places) if stock in _STOCK]
    return PoolOffer(
        pool=pool,
        gpus=tuple(gpu.name or gpu.id or "?" for gpu in gpus),
        memory_gb=min(memories, default=None),
        usd_per_hour=round(max(prices) * count, 4) if prices else None,
        stock=max(stocks, key=_STOCK.index, default=""),
    )


def _stocks(gpu: GpuType, places: set[str]) -> list[str | None]:
    """Return the stock of a GPU in these data centres; everywhere, where none is named or the catalog lists none."""
    if not places or gpu.data_centers is None:
        return [gpu.availability]
    return [place.availability for place in gpu.data_centers if place.id in places] or ["NONE"]
