"""What is told of a settled run beside its rows: the log, metrics, operators' notice and trace."""

from __future__ import annotations

import structlog

from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import count_settlement
from lora_worker.runs.outcomes.failures import known_code
from lora_worker.runs.rows.operator_notices import JobEnd, notice_of_end
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.state.journey import record_end
from lora_worker.runs.steps.closing import Outcome

log = structlog.get_logger(__name__)


def tell_end(held: HeldRun, job_status: str, outcome: Outcome) -> None:
    """Tell that this worker has settled the run with this outcome. Nothing of it waits or raises."""
    run, code, fault = held.assignment.run, outcome.get("error_code"), outcome.get("fault")
    known, gpu_seconds = known_code(code) if code else None, outcome["gpu_seconds"]
    cost = held.cost(gpu_seconds, fee=outcome.get("storage_fee", 0.0))
    count_settlement(job_status, error_code=known, fault=fault, gpu_seconds=gpu_seconds, spend=cost - run.spent_cost)
    notice = notice_of_end(JobEnd(run.job_id, run.id, run.attempt, job_status, known, fault, gpu_seconds, cost))
    if notice is not None:
        held.services.outbox.post(notice)
    record_end(held, job_status, error_code=known, gpu_seconds=gpu_seconds)
    log.info(
        "settled",
        action=Action.RUN_SETTLED,
        job_status=job_status,
        error_code=code,
        gpu_seconds=round(gpu_seconds, 1),
    )
