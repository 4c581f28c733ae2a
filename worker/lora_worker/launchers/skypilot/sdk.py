"""Calls SkyPilot's Python SDK for the worker, in a process of its own, which `client.py` starts by this path.

It runs in any Python from 3.9 on that has SkyPilot, so it imports nothing of the worker. Requests are lines of JSON on
stdin, each answered by one line on stdout, in whatever order they are done:

    {"id": 1, "call": "list", "arguments": {…}}  →  {"id": 1, "value": …}  or  {"id": 1, "error": {"kind", "text"}}

The first line of all is `{"ready": <version>}`, or `{"problem": <sentence>}` before it ends. It ends with its stdin.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

_MOST_TEXT = 300
_FIELDS = ("job_id", "job_name", "status", "job_duration", "schedule_state", "submitted_at", "start_at", "end_at",
           "failure_reason")  # fmt: skip
_NOBODY = {"PermissionDeniedError", "ApiServerAuthenticationError"}
_UNREACHED = {"ApiServerConnectionError", "ServerTemporarilyUnavailableError", "NewConnectionError", "ConnectTimeout"}
"""With these errors nothing was accepted: there was no connection, or the server said that it takes nothing now."""
_UNDECIDED = {"RequestException", "RuntimeError", "HTTPError", "OSError"}
"""These say nothing about whether a call was accepted. SkyPilot's refusals of a task are other classes."""


def _causes(error: Any) -> list[BaseException]:
    """The error, and what it was raised from, as far as the libraries keep it: requests keeps it in the arguments."""
    found: list[BaseException] = []
    while isinstance(error, BaseException) and len(found) < 10:
        found.append(error)
        inner = error.args[0] if error.args else None
        reason = getattr(inner, "reason", None) or inner
        error = reason if isinstance(reason, BaseException) else error.__cause__
    return found


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for each in _causes(error) for base in type(each).__mro__}


def kind_of(error: BaseException, sent: bool) -> str:
    """What an error means. `sent`: a request that changes something may have reached the server."""
    if sent:
        return "in_doubt"
    names = _names(error)
    if getattr(getattr(error, "response", None), "status_code", None) in {401, 403} or names & _NOBODY:
        return "unauthorized"
    if names & _UNREACHED:
        return "unreachable"
    if "ClusterNotUpError" in names:
        status = str(getattr(error, "cluster_status", None))
        return "controller_stopped" if status == "None" or status.endswith("STOPPED") else "failed"
    return "in_doubt" if names & _UNDECIDED else "refused"


def sentence_of(error: BaseException, secrets: list[str]) -> str:
    """The error's first line, short, and without any of these secrets."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0].strip()[:_MOST_TEXT] if lines else ""
    name = type(error).__name__
    return (
        name if not text or any(len(secret) > 7 and secret in str(error) for secret in secrets) else f"{name}: {text}"
    )


class AfterSubmissionError(Exception):
    """The server has the request, and what became of it is not known. Its cause is the SDK's error."""


class Calls:
    """What the worker asks for. Each method is one call."""

    def __init__(self) -> None:
        import sky
        from sky.client import sdk
        from sky.jobs.client import sdk as jobs

        self._sky, self._sdk, self._jobs = sky, sdk, jobs
        self.version = str(sky.__version__)

    def list(self, name_match: str, limit: int) -> Any:
        """The latest managed jobs whose name has this part, those that have ended included."""
        request = self._jobs.queue_v2(
            refresh=False, all_users=True, name_match=name_match, limit=limit, fields=list(_FIELDS), sort_by="job_id",
            sort_order="desc",
        )  # fmt: skip
        return [self._record(job) for job in self._sdk.get(request)[0]]

    def launch(self, name: str, task: dict[str, Any], secrets: dict[str, str]) -> Any:
        """Submit a managed job; its id."""
        made = self._sky.Task.from_yaml_config(dict(task, name=name))
        # Not in the configuration, a copy of which the SDK sends along as the user's own file, secrets and all.
        made.update_secrets(secrets)
        request = self._jobs.launch(made, name=name, job_group=None)
        try:
            ids = self._sdk.get(request)[0]
        except Exception as error:
            raise AfterSubmissionError from error
        return ids[0] if isinstance(ids, (list, tuple)) else ids

    def cancel(self, job_ids: Any) -> None:
        """Ask for the end of managed jobs."""
        self._sdk.get(self._jobs.cancel(job_ids=job_ids))

    @staticmethod
    def _record(job: Any) -> dict[str, Any]:
        values = {field: getattr(job, field, None) for field in _FIELDS}
        values["status"] = getattr(values["status"], "value", values["status"])
        if values["failure_reason"]:
            values["failure_reason"] = str(values["failure_reason"])[:_MOST_TEXT]
        return values


def answer(calls: Calls, line: bytes) -> dict[str, Any]:
    """The answer to one line."""
    request = json.loads(line)
    arguments = request["arguments"]
    try:
        value = getattr(calls, request["call"])(**arguments)
    except BaseException as raised:  # the SDK also raises SystemExit
        secrets = [*arguments.get("secrets", {}).values(), os.environ.get("SKYPILOT_SERVICE_ACCOUNT_TOKEN") or ""]
        was_sent = isinstance(raised, AfterSubmissionError)
        error = raised.__cause__ if was_sent and raised.__cause__ else raised
        kind = kind_of(error, was_sent)
        return {"id": request["id"], "error": {"kind": kind, "text": sentence_of(error, secrets)}}
    return {"id": request["id"], "value": value}


def main() -> int:
    """Answer the lines of stdin until it ends."""
    own = Path(__file__).resolve().parent
    # Beside this file are modules of the worker, whose names are those of others' packages.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != own]
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the SDK prints what it does
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

    try:
        calls = Calls()
    except ImportError as error:
        say({"problem": sentence_of(error, [])})
        return 1
    say({"ready": calls.version})
    for line in sys.stdin.buffer:
        threading.Thread(target=lambda line: say(answer(calls, line)), args=(line,), daemon=True).start()
    # At once: a call that waits for the server would hold up the interpreter's own end.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
