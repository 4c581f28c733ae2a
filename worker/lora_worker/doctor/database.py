"""Checks the database: its schema, the functions that the worker calls, and what the workers have reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_worker.database.functions import WORKER_FUNCTIONS
from lora_worker.database.rest import closed_functions
from lora_worker.doctor.check import Check, as_check
from lora_worker.services import Services

_START = "start one: `lora-worker run`"


async def check_database(services: Services) -> list[Check]:
    """Check that the schema is this worker's, that it may call its functions, and that workers run."""
    version = await services.queue.check_schema()
    closed = await closed_functions(services.queue.rest, WORKER_FUNCTIONS)
    if closed:
        return [as_check("database", problem) for problem in closed]
    health = await services.queue.health()
    checks = [Check("database", True, f"functions of version {version}, {health['queued']} queued jobs")]
    checks += examine_workers(health)
    if health["expired_leases"]:
        text = f"live runs without a worker: {health['expired_leases']}"
        checks.append(Check("leases", False, text, "start a worker: it adopts them at once"))
    if health["stray_launches"]:
        text = f"launches that cost money without a run: {health['stray_launches']}"
        checks.append(Check("launches", False, text, "a running worker cancels them within a minute"))
    return checks


def examine_workers(health: Mapping[str, Any]) -> list[Check]:
    """Check that workers run and do their work, by what they have last reported to the database."""
    if health["no_worker"]:
        # Before the first start this is no fault, unless jobs are waiting.
        is_missed = health["had_worker"] or health["queued"]
        return [Check("workers", False if is_missed else None, health["no_worker"], _START)]
    checks = []
    running = [worker for worker in health["workers"] if not worker["single_pass"]]
    if running:
        slots, held = (sum(int(worker[key]) for worker in running) for key in ("slots", "held"))
        checks.append(Check("workers", True, f"{len(running)} running, {held} of {slots} slots in use"))
    for worker in health["workers"]:
        if worker["single_pass"]:
            minutes = worker["seen_seconds_ago"] / 60
            checks.append(Check("workers", True, f"last pass {minutes:.0f} min ago (`run --once`)"))
        if worker["problem"]:
            checks.append(Check("workers", False, f"{worker['name']}: {worker['problem']}", "see its log"))
    return checks
