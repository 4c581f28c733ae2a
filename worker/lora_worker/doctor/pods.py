"""Compares what RunPod asks for a pod's GPU with what its runs are billed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_worker.doctor.check import Check
from lora_worker.launchers.places import Place
from lora_worker.launchers.runpod_pods.launcher import RunPodPodsLauncher
from lora_worker.money.pricing import GpuPrice, find_gpu
from lora_worker.services import Services

_TOLERANCE = 0.05


async def check_pods(services: Services) -> list[Check]:
    """Compare the prices of each place that has pods of one GPU; empty where there is none.

    Raises:
        ServiceError: RunPod does not answer.
    """
    checks: list[Check] = []
    for place in services.places.all:
        if isinstance(place.launcher, RunPodPodsLauncher):
            checks += examine_pod_prices(place, await place.launcher.read_prices(), services.prices)
    return checks


def examine_pod_prices(place: Place, asked: Mapping[str, float], prices: Sequence[GpuPrice]) -> list[Check]:
    """Compare RunPod's prices of the GPUs that may be had (USD an hour, by their ids) with the price of the place."""
    listed = find_gpu(prices, place.gpu_type)
    billed = place.price_per_hour
    if billed is None and listed is not None:
        billed = listed.price_per_hour
    if billed is None:
        return []
    differing = {gpu: price for gpu, price in asked.items() if abs(billed - price) > _TOLERANCE * price}
    remedy = "write the price into the routing table, or into a file for LORA_WORKER_PRICE_TABLE"
    return [
        Check(
            "pods",
            False,
            f"RunPod asks ${price:.2f} an hour for a pod with {gpu}, and ${billed:.2f} are billed",
            remedy,
        )
        for gpu, price in differing.items()
    ]
