"""Checks the endpoint as RunPod's account describes it: time-outs, GPUs and their prices, volumes, workers.

The decisions are pure functions of what the REST API answers. A key that may only send jobs, or an endpoint that is not
RunPod's own, leaves these checks out with a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from lora_contract.words import counted
from lora_worker.deployment.account import open_api
from lora_worker.deployment.catalog import types_of
from lora_worker.deployment.resources import Endpoint, GpuType, NetworkVolume, Worker, has_fixed_tag
from lora_worker.deployment.rest import RunPodApi
from lora_worker.deployment.secrets import secret_fault
from lora_worker.doctor.check import Check
from lora_worker.errors import ServiceError, ServiceRefusedError
from lora_worker.launchers.addresses import endpoint_id_of
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.money.guide import holds, needed_memory_gb
from lora_worker.money.pricing import GpuPrice, find_gpu
from lora_worker.money.terms import Terms
from lora_worker.services import Services
from lora_worker.words import time_of

_MOST_IDLE_SECONDS = 60
"""A worker that waits for another job is billed. Trainings last for minutes at least, so waiting longer rarely pays."""

_STUCK_SECONDS = 1800.0
"""The trainer's image has about 10 GB: even a slow host pulls it in a quarter of an hour."""

_PRICE_TOLERANCE = 0.05
_CHANGE = "change it in deploy.toml and run `lora-worker deploy apply`"


@dataclass(frozen=True, slots=True)
class Account:
    """What the account shows of the endpoint."""

    endpoint: Endpoint
    workers: Sequence[Worker]
    volumes: Sequence[NetworkVolume]
    gpu_types: Sequence[GpuType]


async def check_account(services: Services) -> list[Check]:
    """Read the endpoint through RunPod's REST API, and check it against the settings and the queue.

    Raises:
        ServiceError: RunPod does not answer.
    """
    settings = services.settings
    api = open_api(settings, services.http)
    if api is None:
        return []
    assert isinstance(settings, RunPodSettings)
    endpoint_id = endpoint_id_of(settings.gpu_cluster_api_url)
    try:
        account = await _read_account(api, endpoint_id) if endpoint_id else None
    except ServiceRefusedError as error:
        if error.status == 401:
            return []  # The endpoint's own check names the wrong key.
        if error.status != 403:
            raise
        text = "the RunPod key may send jobs but not look at the endpoint: its time-outs, GPUs and prices are unknown"
        return [Check("account", None, text, "use a key with read access to see them")]
    if account is None:
        text = f"the account of the RunPod key has no endpoint {endpoint_id or settings.gpu_cluster_api_url}"
        return [Check("account", False, text, "check GPU_CLUSTER_API_URL or RUNPOD_ENDPOINT_ID")]
    checks = [
        *examine_endpoint(account.endpoint, settings),
        *examine_volumes(account.endpoint, account.volumes),
        *examine_gpus(account.endpoint, account.gpu_types, settings, services.prices),
        *examine_account_workers(account.workers, services.now()),
        *examine_base_models(await _waiting_base_models(services), services.terms),
    ]
    return checks or [Check("account", True, "the endpoint's settings fit the worker's")]


async def _waiting_base_models(services: Services) -> list[str]:
    try:
        return (await services.queue.project_report())["base_models"]
    except ServiceError:
        return []  # The database's checks say why.


async def _read_account(api: RunPodApi, endpoint_id: str) -> Account | None:
    endpoint = await api.read_endpoint(endpoint_id)
    if endpoint is None:
        return None
    gpu_count = (endpoint.gpu and endpoint.gpu.count) or 1
    return Account(
        endpoint,
        await api.list_workers(endpoint_id),
        await api.list_volumes(),
        await api.list_gpu_types(gpu_count=gpu_count),
    )


def examine_endpoint(endpoint: Endpoint, settings: RunPodSettings) -> list[Check]:
    """Check time-outs, numbers of workers, image and variables of the endpoint."""
    faults: list[tuple[str, str]] = []
    timeout_seconds = (endpoint.timeout or 0) / 1000
    if 0 < timeout_seconds < settings.max_run_seconds:
        faults.append((
            f"its execution time-out is {timeout_seconds:.0f} s, less than LORA_WORKER_MAX_RUN_SECONDS "
            f"({settings.max_run_seconds:.0f})",
            f"raise it: {_CHANGE}",
        ))  # fmt: skip
    workers = endpoint.workers
    if workers and workers.max == 0:
        faults.append(("it may have no worker (max 0): every job waits", f"raise workers max: {_CHANGE}"))
    if workers and workers.min:
        faults.append((f"{counted(workers.min, 'worker')} always on, billed day and night", "set workers min to 0"))
    if workers and (workers.idle_timeout or 0) > _MOST_IDLE_SECONDS:
        text = f"its workers wait {workers.idle_timeout} s for another job, and are billed for it"
        faults.append((text, f"set the idle time-out to {_MOST_IDLE_SECONDS} s or less: {_CHANGE}"))
    if endpoint.flashboot not in {None, "OFF"}:
        text = "FlashBoot is on: it may start a worker with the state of an earlier job, and saves a training nothing"
        faults.append((text, f"switch it off: {_CHANGE}"))
    faults += container_faults(endpoint, _CHANGE)
    return [Check("account", False, finding, remedy) for finding, remedy in faults]


def container_faults(endpoint: Endpoint, change: str) -> list[tuple[str, str]]:
    """Return what is wrong with an endpoint's image and variables, each with its remedy: `change` is how to do it."""
    faults = []
    if endpoint.image and not has_fixed_tag(endpoint.image):
        text = f"its image {endpoint.image} has no fixed tag: hosts keep an older one of that name"
        faults.append((text, f"name a version: {change}"))
    secret = sorted(name for name, value in (endpoint.env or {}).items() if secret_fault(name, value))
    if secret:
        text = f"its environment holds {', '.join(secret)}, which everybody with access to the account can read"
        faults.append((text, "use a secret of RunPod, {{ RUNPOD_SECRET_… }}, or remove it"))
    return faults


def examine_volumes(endpoint: Endpoint, volumes: Iterable[NetworkVolume]) -> list[Check]:
    """Check that base models are kept on a network volume which exists where the endpoint's workers start."""
    wanted = endpoint.network_volumes or []
    if not wanted:
        text = "it has no network volume: each new worker downloads the base model, and no checkpoint outlives it"
        return [Check("account", False, text, f"add one: {_CHANGE}")]
    known = {volume.id: volume for volume in volumes}
    checks = []
    for volume_id in wanted:
        volume = known.get(volume_id)
        places = endpoint.data_center_ids or []
        if volume is None:
            text = f"its network volume {volume_id} does not exist"
            checks.append(Check("account", False, text, f"make one: {_CHANGE}"))
        elif places and volume.data_center not in places:
            text = f"its network volume is in {volume.data_center}, where none of its workers may start"
            checks.append(Check("account", False, text, f"add that data centre to the endpoint: {_CHANGE}"))
    return checks


def examine_gpus(
    endpoint: Endpoint, gpu_types: Iterable[GpuType], settings: RunPodSettings, prices: tuple[GpuPrice, ...]
) -> list[Check]:
    """Check the endpoint's GPUs against the settings by which they are billed, and the price table against RunPod's."""
    pools = set((endpoint.gpu and endpoint.gpu.pools) or [])
    offered = types_of(gpu_types, pools, (endpoint.gpu and endpoint.gpu.excluded_types) or ())
    checks = _count_check(endpoint, settings) + _price_checks(offered, prices)
    cards = {price.type for gpu in offered if (price := find_gpu(prices, gpu.id))}
    card = find_gpu(prices, settings.endpoint_gpu_type)
    names = ", ".join(sorted(cards))
    if card and cards and card.type not in cards:
        text = f"LORA_WORKER_ENDPOINT_GPU_TYPE is {card.type}, and the endpoint has {names}: bills are wrong"
        checks.append(Check("account", False, text, f"set it to {names}"))
    if not card and cards:
        text = f"jobs are billed as the GPU that they ask for, and the endpoint has {names}"
        checks.append(Check("account", None, text, f"set LORA_WORKER_ENDPOINT_GPU_TYPE to {names}"))
    if offered and all(gpu.availability == "NONE" for gpu in offered):
        text = f"RunPod has none of its GPUs now ({names or ', '.join(sorted(pools))})"
        checks.append(Check("account", False, text, f"add another pool: {_CHANGE}"))
    return checks


def _count_check(endpoint: Endpoint, settings: RunPodSettings) -> list[Check]:
    count = (endpoint.gpu and endpoint.gpu.count) or 1
    if count == settings.endpoint_gpu_count:
        return []
    text = (
        f"its workers have {counted(count, 'GPU')}, and LORA_WORKER_ENDPOINT_GPU_COUNT is {settings.endpoint_gpu_count}"
    )
    return [Check("account", False, text, f"set it to {count}, or bills are wrong")]


def _price_checks(offered: Iterable[GpuType], prices: tuple[GpuPrice, ...]) -> list[Check]:
    checks = []
    for gpu in offered:
        listed, asked = find_gpu(prices, gpu.id), gpu.price and gpu.price.serverless
        if listed and asked and abs(listed.price_per_hour - asked) > _PRICE_TOLERANCE * asked:
            text = (
                f"RunPod asks ${asked:.2f} an hour for {gpu.id}, and the price table says ${listed.price_per_hour:.2f}"
            )
            checks.append(Check("account", False, text, "write its price into a file for LORA_WORKER_PRICE_TABLE"))
    return checks


def examine_account_workers(workers: Iterable[Worker], now: datetime) -> list[Check]:
    """Find workers that don't get ready: they are billed for nothing, or their image is broken."""
    checks = []
    for worker in workers:
        started = time_of(worker.started_at)
        seconds = (now - started).total_seconds() if started else 0.0
        if worker.status == "UNHEALTHY":
            text = f"the worker {worker.id} is unhealthy"
            checks.append(Check("account", False, text, "read why: `lora-worker logs` of a job that waits"))
        elif worker.status == "INITIALIZING" and seconds > _STUCK_SECONDS:
            text = f"the worker {worker.id} has been initializing for {seconds / 60:.0f} minutes"
            checks.append(
                Check("account", False, text, "check that the image exists and can be pulled; end the worker")
            )
    return checks


def examine_base_models(base_models: Iterable[str], terms: Terms) -> list[Check]:
    """Check that the base models of waiting jobs fit the endpoint's GPU, as far as its type is set."""
    gpu = terms.gpu(terms.endpoint_gpu_type) if terms.endpoint_gpu_type else None
    if gpu is None:
        return []
    names = {name or terms.default_base_model for name in base_models}
    needed = {name: size for name in sorted(names) if (size := needed_memory_gb(name)) is not None}
    too_large = {name: size for name, size in needed.items() if not holds(gpu.memory_gb, size)}
    return [
        Check(
            "account",
            False,
            f"a waiting job's {name} needs about {size:.0f} GB, and the endpoint's {gpu.type} has {gpu.memory_gb}",
            f"add a pool with larger GPUs: {_CHANGE}",
        )
        for name, size in too_large.items()
    ]
