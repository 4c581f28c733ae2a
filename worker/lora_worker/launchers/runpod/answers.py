"""RunPod's answers as values: bounded in size, depth and number, whatever a container put into its output."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from lora_worker.launchers.answers import Answer
from lora_worker.launchers.base import EndCause, LaunchState, Observation

_MAX_ERROR_CHARACTERS = 20_000
_MAX_SECONDS = 8 * 86400.0
"""RunPod ends a job after seven days."""
_MAX_COUNT = 100_000

STATES: dict[str, LaunchState] = {
    "IN_QUEUE": LaunchState.QUEUED,
    "IN_PROGRESS": LaunchState.RUNNING,
    # Documented, never seen.
    "RUNNING": LaunchState.RUNNING,
    "COMPLETED": LaunchState.COMPLETED,
    "FAILED": LaunchState.FAILED,
    "CANCELLED": LaunchState.CANCELLED,
    "TIMED_OUT": LaunchState.TIMED_OUT,
}
_IMPORT_ERRORS = frozenset({"ImportError", "ModuleNotFoundError"})
_WORKER_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_STATUS = re.compile(rb'"status"\s*:\s*"([A-Z_]{1,40})"')


async def read_observation(answer: Answer) -> Observation:
    """An observation from the answer to `/status`. An output that can't be read is none, and hides no status."""
    try:
        return parse_observation(await answer.json())
    except (ValueError, RecursionError) as error:
        # RunPod writes its keys in alphabetical order: what follows the output is its own.
        found = _STATUS.findall(answer.tail)
        state = STATES.get(found[-1].decode()) if found else None
        if state is None or answer.tail.rstrip()[-1:] != b"}":
            return Observation(LaunchState.UNKNOWN, reason="the answer is not JSON")
        return Observation(state, reason=f"its output can't be read ({str(error)[:100]})")


def parse_observation(body: Any) -> Observation:
    """An observation from the JSON of `/status`."""
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return Observation(LaunchState.UNKNOWN, reason="the answer holds no status")
    state = STATES.get(body["status"])
    if state is None:
        return Observation(LaunchState.UNKNOWN, reason=f"unknown status {body['status'][:40]!r}")
    error = body.get("error")
    text = error if isinstance(error, str) or error is None else json.dumps(error)
    return Observation(
        state,
        output=body.get("output"),
        cause=_cause_of(text[:_MAX_ERROR_CHARACTERS]) if text else EndCause.UNKNOWN,
        execution_seconds=seconds_of(body.get("executionTime")),
        queue_seconds=seconds_of(body.get("delayTime")),
        container=_worker_id(body.get("workerId")),
    )


def _worker_id(value: Any) -> str | None:
    return value if isinstance(value, str) and _WORKER_ID.fullmatch(value) else None


def _cause_of(error: str) -> EndCause:
    raised = _raised_type(error)
    if raised is not None:
        if "OutOfMemory" in raised:
            return EndCause.OUT_OF_MEMORY
        return EndCause.IMPORT_FAILED if raised in _IMPORT_ERRORS else EndCause.RAISED
    if "executiontimeout" in error.lower():
        return EndCause.OVER_TIME
    if "timed out after" in error or "retries" in error:
        return EndCause.LOST
    return EndCause.UNKNOWN


def _raised_type(error: str) -> str | None:
    """The class of the exception that the handler raised, without its module; None where it raised none.

    RunPod's SDK reports an exception as a JSON object in a string: {"error_type": "<class 'torch.OutOfMemoryError'>"}.
    """
    try:
        kind = json.loads(error)["error_type"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return str(kind).removeprefix("<class '").removesuffix("'>").rpartition(".")[2]


def seconds_of(milliseconds: Any) -> float | None:
    """Seconds of a time that RunPod says in ms; None where no launch can have taken it."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    if not 0 <= milliseconds <= _MAX_SECONDS * 1000 or not math.isfinite(milliseconds):
        return None
    return milliseconds / 1000


def count_of(counts: Any, name: str) -> int:
    """One of the counts of `/health`; 0 for what is no count.

    Raises:
        TypeError: there are no counts at all.
    """
    if not isinstance(counts, Mapping):
        raise TypeError("no counts")
    value = counts.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_COUNT:
        return 0
    return int(value)
