"""What a container says of its own GPUs and time, compared with what is billed. Claims never raise a bill."""

from __future__ import annotations

import structlog

from lora_contract.protocol import Progress, Summary
from lora_worker.money.billing import contradiction
from lora_worker.observability.actions import Action
from lora_worker.runs.state.held_run import HeldRun

log = structlog.get_logger(__name__)


def warn_of_contradiction(held: HeldRun, claims: Progress | Summary) -> None:
    """Log what the container says of its GPUs, where something else is billed."""
    problem = contradiction(held.rate, claims.gpu_type, claims.gpu_count, held.services.prices)
    if problem and held.services.repeats.is_due((held.run_id, "contradiction"), problem):
        log.warning(
            "the trainer contradicts the bill; see LORA_WORKER_ENDPOINT_GPU_TYPE and …_GPU_COUNT",
            action=Action.BILL_GPU_CONTRADICTED,
            problem=problem,
        )


def billed_seconds(held: HeldRun, summary: Summary) -> float:
    """The GPU seconds of the bill; the log tells where the trainer claims other GPUs or more seconds."""
    warn_of_contradiction(held, summary)
    billed = held.gpu_seconds(summary.execution_seconds)
    if (summary.execution_seconds or 0.0) > billed + held.services.settings.lost_seconds:
        log.warning(
            "the trainer claims more seconds than the clocks say",
            action=Action.BILL_SECONDS_CONTRADICTED,
            claimed=summary.execution_seconds,
            billed=round(billed, 1),
        )
    return billed
