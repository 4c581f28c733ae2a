"""The one write that closes a run; where the database can't hold what its container said, a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.error_codes import Fault
from lora_worker.errors import LeaseLostError, ServiceError, ValueRefusedError
from lora_worker.observability.actions import Action
from lora_worker.runs.rows import notices
from lora_worker.runs.state.held_run import HeldRun

log = structlog.get_logger(__name__)

Outcome = dict[str, Any]

_SENTENCE = "The training ended with a result that can't be stored. Please report it to support."


async def close(held: HeldRun, outcomes: Iterable[Callable[[], Outcome]]) -> tuple[str, Outcome]:
    """Settle the run with the first of these outcomes that can be made and stored, else as failed.

    Returns the job's status afterwards and the outcome that was stored.

    Raises:
        LeaseLostError: another worker has the run; nothing was written.
        ServiceError: the database did not answer; either nothing was written, or all of it.
    """
    for make in outcomes:
        try:
            outcome = make()
            return await _write(held, outcome), outcome
        except ValueRefusedError as error:
            log.error("an outcome was refused", action=Action.OUTCOME_REFUSED, problem=str(error))
        except (ServiceError, LeaseLostError):
            raise
        except Exception:
            log.exception("an outcome could not be made", action=Action.OUTCOME_ERROR)
    outcome = bare_failure(held)
    return await _write(held, outcome), outcome


async def _write(held: HeldRun, outcome: Outcome) -> str:
    crash_point("worker.settle.before")
    held.require_lease()
    run = held.assignment.run
    status = await held.services.queue.settle(run.id, run.lease_token, outcome)
    crash_point("worker.settle.after")
    if status is None:
        raise LeaseLostError("the lease was lost before settling")
    return status


def bare_failure(held: HeldRun) -> Outcome:
    """A failure without anything that a container has said."""
    run, observation = held.assignment.run, held.observation
    seconds = held.gpu_seconds()
    return {
        "run_status": "failed",
        "job_status": "failed",
        "fault": str(Fault.PERMANENT),
        "error_code": "result_refused",
        "error_message": _SENTENCE,
        "gpu_seconds": seconds,
        "launcher_ended": observation is not None and observation.ended,
        "notices": [notices.job_failed(run.job_id, _SENTENCE)],
        "notices_if_cancelled": [notices.job_cancelled(run.job_id, held.cost(seconds))],
    }
