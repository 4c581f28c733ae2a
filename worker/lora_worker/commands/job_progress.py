"""How a job stands, as one flat value: what `watch` tells of it."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from lora_worker.commands.terminal import printable
from lora_worker.database.job_reports import JobDetails, JobEntry
from lora_worker.database.measured import measured_of
from lora_worker.runs.rows.improvement import improvement_sentence
from lora_worker.words import measured, money, number_of, percent, plain, short_id


class Change(TypedDict):
    """How a job stands at the moment. `watch --json` prints one for each change."""

    job_id: str
    status: str
    stage: str | None
    progress: float | None
    """In percent."""
    current_step: int | None
    total_steps: int | None
    loss: float | None
    """The newest training loss, in nats per token."""
    validation_loss: float | None
    tokens_per_second: float | None
    cost: float | None
    """In USD, so far."""
    estimated_completion_at: str | None
    waits_for: str | None
    run_id: str | None
    attempt: int | None
    error_code: str | None
    error_message: str | None
    improvement: str | None
    """What got better on held-out conversations, as a sentence; null until the job has completed."""
    serving_name: str | None
    """By which name an endpoint serves the adapter; null where none does."""


def change_of(details: JobDetails) -> Change:
    """Return how a job stands. Numbers of the trainer come from the newest report, else from the curve."""
    job, points = details["job"], details["points"]
    brought = measured_of(details)
    reported: dict[str, Any] = job["current_metrics"] if isinstance(job["current_metrics"], dict) else {}

    def newest(metric: str, column: str) -> float | None:
        value = number_of(reported.get(metric))
        if value is not None:
            return value
        known = (number_of(point[column]) for point in reversed(points))  # type: ignore[literal-required]
        return next((number for number in known if number is not None), None)

    return {
        "job_id": job["job_id"],
        "status": job["status"],
        "stage": job["stage"],
        "progress": number_of(job["progress"]),
        "current_step": job["current_step"],
        "total_steps": job["total_steps"],
        "loss": newest("training_loss", "loss"),
        "validation_loss": newest("validation_loss", "validation_loss"),
        "tokens_per_second": newest("throughput", "throughput"),
        "cost": number_of(cost_of(job)),
        "estimated_completion_at": job["estimated_completion_at"],
        "waits_for": job["waits_for"],
        "run_id": job["run_id"],
        "attempt": job["attempt"],
        "error_code": job["error_code"],
        "error_message": job["error_message"],
        "improvement": improvement_sentence(brought),
        "serving_name": brought.serving_name,
    }


def cost_of(job: JobEntry) -> Any:
    """Return what a job has cost: in USD and as the row has it: its final bill, before that the cost so far."""
    return job["final_cost"] if job["final_cost"] is not None else job["current_cost"]


def change_words(change: Change) -> str:
    """Return a change as one line of text."""
    words = [short_id(change["job_id"]), change["status"]]
    if change["stage"] and change["stage"] != change["status"]:
        words.append(plain(change["stage"]))
    if change["status"] in {"running", "initializing"}:
        words.append(percent(change["progress"]))
        if change["total_steps"]:
            words.append(f"step {change['current_step'] or 0}/{change['total_steps']}")
    if change["loss"] is not None:
        words.append(f"loss {measured(change['loss'])}")
    if change["cost"]:
        words.append(money(change["cost"]))
    if change["waits_for"]:
        words.append(f"waits for {change['waits_for']}")
    if change["error_message"]:
        words.append(": ".join(text for text in (change["error_code"], change["error_message"]) if text))
    if change["improvement"]:
        words.append(change["improvement"])
    if change["serving_name"]:
        words.append(f"call it {change['serving_name']}")
    return printable("  ".join(words).replace("  ", " · "))
