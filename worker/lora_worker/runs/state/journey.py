"""A held run's part of its trace: what this worker adds to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lora_contract.tracing import context_of
from lora_worker.runs.state.held_run import HeldRun


@contextmanager
def spanning(held: HeldRun, name: str) -> Iterator[None]:
    """Record what this worker does for the run until the context ends as a span of the run's trace."""
    with held.services.traces.spanning(name, context_of(held.run_id), _ids(held)):
        yield


def record_taking(held: HeldRun, how: str, *, asked_seconds_ago: float) -> None:
    """Record that this worker claimed or adopted the run."""
    now = held.services.now().timestamp()
    name = "claim" if how == "claimed" else "adopt"
    held.services.traces.record(
        name, parent=context_of(held.run_id), began_at=now - asked_seconds_ago, ended_at=now, attributes=_ids(held)
    )


def record_end(held: HeldRun, job_status: str, *, error_code: str | None, gpu_seconds: float) -> None:
    """Record the whole run, and its wait for the GPU (queue and cold start), by the database's times.

    Only the worker that settles the run does so: until then nobody knows when the run ends.
    """
    services, run, news = held.services, held.assignment.run, held.news
    now, root = services.now().timestamp(), context_of(held.run_id)
    waited_until = news.checked_in_at.timestamp() if news.checked_in_at else None
    if news.posted_seconds_ago is not None and waited_until is not None:
        # The age is that of the last renewal.
        renewed_at = held.trusted_until - services.settings.lease_seconds
        posted_at = now - (services.clock() - renewed_at) - news.posted_seconds_ago
        services.traces.record("queue", parent=root, began_at=posted_at, ended_at=waited_until, attributes=_ids(held))
    services.traces.record(
        "run",
        parent=None,
        own=root,
        began_at=run.created_at.timestamp() if run.created_at else now - held.launch_age_seconds,
        ended_at=now,
        failed=job_status == "failed" or error_code is not None,
        attributes={
            "job_status": job_status,
            "error_code": error_code,
            "gpu_seconds": round(gpu_seconds, 1),
            **_ids(held),
        },
    )


def _ids(held: HeldRun) -> dict[str, str | int]:
    run = held.assignment.run
    return {
        "run_id": held.run_id,
        "job_id": str(run.job_id),
        "attempt": run.attempt,
        "worker_id": held.services.settings.name,
    }
