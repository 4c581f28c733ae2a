"""What operators are told of a job's end: ids, codes and figures, never a text of its user."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from lora_contract.error_codes import ErrorCode, Fault
from lora_worker.observability.outbox import NoticeKind, OperatorNotice, Severity
from lora_worker.runs.outcomes.failures import EARLIER_TRAINER, WORKER_FAULT, WORKER_KILLED

_OUR_CODES = frozenset(
    {
        ErrorCode.REQUEST_INVALID,
        EARLIER_TRAINER.code,
        WORKER_FAULT.code,
        WORKER_KILLED.code,
        "result_refused",
        "upload_request_invalid",
    }
)
"""Permanent failures that no change of the job would have avoided."""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended; `gpu_seconds` and `cost` (USD) are those of the job's last run and of the whole job."""

    job_id: UUID
    run_id: UUID
    attempt: int
    job_status: str
    error_code: str | None
    fault: str | None
    gpu_seconds: float
    cost: float


def is_our_fault(end: JobEnd) -> bool:
    """Whether a failed job failed for a cause that its user can't mend."""
    return end.job_status == "failed" and (end.error_code in _OUR_CODES or end.fault not in {None, Fault.PERMANENT})


def notice_of_end(end: JobEnd) -> OperatorNotice | None:
    """The notice of a job's end; None for a job that goes on with another attempt."""
    if end.job_status == "queued":
        return None
    ours = is_our_fault(end)
    reason = f" ({end.error_code})" if end.error_code else ""
    cause = " The cause is not the job's own." if ours else ""
    return OperatorNotice(
        NoticeKind.JOB_FAILED if ours else NoticeKind.JOB_ENDED,
        f"Training job {end.job_status}{reason}",
        f"Job {end.job_id} is {end.job_status}{reason} after attempt {end.attempt}.{cause} Its last run {end.run_id} "
        f"took {end.gpu_seconds / 60:.1f} minutes of GPU time, and the job cost ${end.cost:.2f}. "
        f"lora-worker show {end.job_id} tells more.",
        _SEVERITIES.get(end.job_status, "info") if not ours else "failure",
    )


_SEVERITIES: dict[str, Severity] = {
    "completed": "success",
    "failed": "warning",
}
