"""The one write that closes a run; and where the database can't hold what its container said, a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.protocol import Fault
from lora_worker.errors import LeaseLostError, ServiceError, ValueRefusedError
from lora_worker.runs import notices

if TYPE_CHECKING:
    from lora_worker.runs.held_run import Holding

log = structlog.get_logger(__name__)

Outcome = dict[str, Any]

_SENTENCE = "The training ended with a result that can't be stored. Please report it to support."


async def close(holding: Holding, outcomes: Iterable[Callable[[], Outcome]]) -> tuple[str, Outcome]:
    """Settle the run with the first of these outcomes that can be made and stored, else as failed.

    Answers the job's status afterwards and the outcome.

    Raises:
        LeaseLostError: another worker has the run; nothing was written.
        ServiceError: the database did not answer; nothing was written, or all of it.
    """
    for make in outcomes:
        try:
            outcome = make()
            return await _write(holding, outcome), outcome
        except ValueRefusedError as error:
            log.error("an outcome was refused", run_id=str(holding.assignment.run.id), problem=str(error))
        except (ServiceError, LeaseLostError):
            raise
        except Exception:
            log.exception("an outcome could not be made", run_id=str(holding.assignment.run.id))
    outcome = bare_failure(holding)
    return await _write(holding, outcome), outcome


async def _write(holding: Holding, outcome: Outcome) -> str:
    crash_point("worker.settle.before")
    holding.require_lease()
    run = holding.assignment.run
    status = await holding.services.queue.settle(run.id, run.lease_token, outcome)
    crash_point("worker.settle.after")
    if status is None:
        raise LeaseLostError("the lease was lost before settling")
    return status


def bare_failure(holding: Holding) -> Outcome:
    """A failure with nothing in it that a container has said."""
    run, observation = holding.assignment.run, holding.observation
    seconds = holding.gpu_seconds()
    return {
        "run_status": "failed",
        "job_status": "failed",
        "fault": str(Fault.PERMANENT),
        "error_code": "result_refused",
        "error_message": _SENTENCE,
        "gpu_seconds": seconds,
        "launcher_ended": observation is not None and observation.ended,
        "notices": [notices.job_failed(run.job_id, _SENTENCE)],
        "notices_if_cancelled": [notices.job_cancelled(run.job_id, holding.cost(seconds))],
    }
