"""The spans of an execution's stages: one for each, from its first report to the next stage's."""

from __future__ import annotations

import time

from lora_contract.protocol import Request, Result, Stage
from lora_contract.tracing import Traces, context_of, parse_traceparent

FLUSH_SECONDS = 1.0
"""How long a finished execution waits for its last spans to be exported: its GPU is paid for, and may go at once."""

_NAMES = {
    Stage.DOWNLOADING: "download",
    Stage.PREPARING: "prepare",
    Stage.LOADING_MODEL: "load",
    Stage.CONFIGURING: "configure",
    Stage.TRAINING: "train",
    Stage.SAVING: "save",
    Stage.UPLOADING: "upload",
}


class StageSpans:
    """Records the execution of a request, and its stages below it, in the run's trace."""

    def __init__(self, traces: Traces, request: Request, execution_id: str) -> None:
        self._traces = traces
        self._parent = parse_traceparent(request.traceparent) or context_of(request.run_id)
        self._own = traces.child_of(self._parent)
        self._ids = {"run_id": request.run_id, "job_id": request.job_id, "execution_id": execution_id}
        self._began_at = self._stage_began_at = time.time()
        self._stage = Stage.SETUP

    def enter(self, stage: Stage) -> None:
        """Record that this stage goes on, which ends the one before."""
        if stage is not self._stage:
            self._end_stage(failed=False)
            self._stage, self._stage_began_at = stage, time.time()

    def end(self, result: Result) -> None:
        """Record that the execution has ended with this result."""
        failed = result.status in {"failed", "unpublished"}
        self._end_stage(failed=failed)
        self._traces.record(
            "execution",
            parent=self._parent,
            own=self._own,
            began_at=self._began_at,
            failed=failed,
            attributes={
                **self._ids,
                "stage": self._stage,
                "error_code": result.error.code if result.error else None,
            },
        )

    def _end_stage(self, *, failed: bool) -> None:
        name = _NAMES.get(self._stage)
        if name is not None:
            self._traces.record(
                name,
                parent=self._own,
                began_at=self._stage_began_at,
                failed=failed,
                attributes={**self._ids, "stage": self._stage},
            )
