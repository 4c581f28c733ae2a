"""What operators are told of a job's end."""

from __future__ import annotations

from uuid import UUID

import pytest

from lora_worker.runs.rows.operator_notices import JobEnd, is_our_fault, notice_of_end

JOB, RUN = UUID(int=1), UUID(int=2)


def end(job_status: str, error_code: str | None = None, fault: str | None = None) -> JobEnd:
    return JobEnd(JOB, RUN, 2, job_status, error_code, fault, gpu_seconds=90, cost=1.5)


@pytest.mark.parametrize(
    ("ended", "kind", "severity"),
    [
        (end("completed"), "job_ended", "success"),
        (end("cancelled"), "job_ended", "info"),
        (end("failed", "dataset_invalid", "permanent"), "job_ended", "warning"),
        (end("failed", "worker_fault", "permanent"), "job_failed", "failure"),
        (end("failed", "gpu_lost", "infrastructure"), "job_failed", "failure"),
        (end("failed", "base_model_unreachable", "transient"), "job_failed", "failure"),
    ],
)
def test_end_is_told_by_whose_fault_it_was(ended: JobEnd, kind: str, severity: str) -> None:
    notice = notice_of_end(ended)
    assert notice is not None
    assert (notice.kind, notice.severity) == (kind, severity)
    assert is_our_fault(ended) is (kind == "job_failed")
    assert str(JOB) in notice.body
    assert "1.5 minutes of GPU time, and the job cost $1.50" in notice.body


def test_job_that_is_tried_again_is_not_told() -> None:
    assert notice_of_end(end("queued", "gpu_lost", "infrastructure")) is None
