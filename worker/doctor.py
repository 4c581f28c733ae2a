"""Checks of everything the worker stands on, each with its remedy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from worker.errors import ServiceError
from worker.services import Services

_LEAST_MODEL_BYTES = 1024**3
"""An adapter of rank 128 on a 70B model stays below this."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was found; `remedy` is empty when all is well."""

    subject: str
    ok: bool
    finding: str
    remedy: str = ""


async def examine(services: Services) -> list[Check]:
    """Run every check; a failing one never hides the next."""
    checks: list[Check] = []
    for subject, check in _CHECKS:
        try:
            checks += await check(services)
        except ServiceError as error:
            checks.append(Check(subject, False, str(error), _remedy_of(subject)))
    return checks


def _remedy_of(subject: str) -> str:
    return {
        "database": "check SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY; run `lora-worker migrate`",
        "storage": "check that Storage is on in the project and that the key may use it",
        "endpoint": "check GPU_CLUSTER_API_URL and GPU_CLUSTER_API_KEY",
    }.get(subject, "")


async def _check_database(services: Services) -> list[Check]:
    version = await services.queue.check_schema()
    health = await services.queue.health()
    checks = [Check("database", True, f"functions of version {version}, {health['queued']} queued jobs")]
    if health["expired_leases"]:
        text = f"{health['expired_leases']} live runs have no worker"
        checks.append(Check("leases", False, text, "start a worker: it adopts them at once"))
    if health["stray_launches"]:
        text = f"{health['stray_launches']} launches cost money without a run"
        checks.append(Check("launches", False, text, "a running worker cancels them within a minute"))
    return checks


async def _check_storage(services: Services) -> list[Check]:
    found = {bucket["name"]: bucket for bucket in await services.storage.buckets()}
    checks = []
    for name in sorted({services.settings.artifacts_bucket, "lora-datasets"}):
        bucket = found.get(name)
        if bucket is None:
            checks.append(Check("storage", False, f"the bucket {name} is missing", "run `lora-worker migrate`"))
            continue
        limit = bucket.get("file_size_limit")
        if bucket.get("public"):
            checks.append(Check("storage", False, f"the bucket {name} is public", "make it private"))
        elif name == services.settings.artifacts_bucket and limit and int(limit) < _LEAST_MODEL_BYTES:
            text = f"the bucket {name} takes files up to {int(limit) / 1e6:.0f} MB"
            checks.append(Check("storage", False, text, "raise its limit, and the project's, to 1 GB or more"))
        else:
            checks.append(Check("storage", True, f"the bucket {name} is there and private"))
    return checks


async def _check_endpoint(services: Services) -> list[Check]:
    health = await services.launcher.health()
    if not health.reachable or health.problem:
        return [Check("endpoint", False, health.problem or "not reachable", _remedy_of("endpoint"))]
    return [Check("endpoint", True, f"{health.workers} workers, {health.jobs_queued} jobs in its queue")]


_CHECKS: tuple[tuple[str, Callable[[Services], Awaitable[list[Check]]]], ...] = (
    ("database", _check_database),
    ("storage", _check_storage),
    ("endpoint", _check_endpoint),
)
