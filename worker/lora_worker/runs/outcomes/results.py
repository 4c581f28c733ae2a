"""Reads the output of a launch: progress and result of this trainer, or of the earlier one."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_contract.error_codes import Fault
from lora_contract.protocol import Progress, Result, Stage
from lora_contract.redaction import redact
from lora_worker.runs.outcomes.failures import CRASHED, Failure

_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


class LegacyResult(BaseModel):
    """A success of the earlier trainer, which reports names and URLs of files to copy."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    files: dict[str, str]
    metadata: dict[str, Any]


def parse_progress(output: Any, *, run_id: str) -> Progress | None:
    """The progress in a running launch's output: ours, or the earlier trainer's; None if neither."""
    if not isinstance(output, dict):
        return None
    try:
        progress = Progress.model_validate(output)
    except ValidationError:
        return _parse_legacy_progress(output, run_id)
    return progress if progress.run_id == run_id else None


def _parse_legacy_progress(output: dict[str, Any], run_id: str) -> Progress | None:
    if "run_id" in output or "progress" not in output:
        return None
    try:
        stage = output.get("stage") or Stage.TRAINING
        # Nobody expects a proof of it: its files are fetched only where the operator has switched that on.
        return Progress.model_validate({**output, "run_id": run_id, "stage": stage, "proves": True})
    except ValidationError:
        return None


def parse_result(output: Any, *, run_id: str) -> Result | LegacyResult | Failure | None:
    """The result in an ended launch's output, whichever trainer wrote it; None if it can't be read."""
    if not isinstance(output, dict):
        return None
    try:
        result = Result.model_validate(output)
    except ValidationError:
        return _parse_legacy_result(output)
    return result if result.run_id == run_id else None


def _parse_legacy_result(output: dict[str, Any]) -> LegacyResult | Failure | None:
    message = output.get("error_message")
    if output.get("status") == "failed" or (message and output.get("status") != "success"):
        return Failure("training_failed", Fault.PERMANENT, _foreign_sentence(message) or CRASHED.message)
    files = output.get("model_files") or output.get("download_urls")
    if not isinstance(files, dict) or not files:
        return None
    metadata = output.get("model_metadata") or output.get("metadata")
    try:
        return LegacyResult(files=files, metadata=metadata if isinstance(metadata, dict) else {})
    except ValidationError:
        return None


def _foreign_sentence(text: Any) -> str:
    """The line of an error text that says what happened, without keys and addresses: its program may print both."""
    lines = str(text or "").strip().splitlines()
    if not lines:
        return ""
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return redact(_ADDRESS.sub("[address]", line)).strip()[:500]
