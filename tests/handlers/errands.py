"""A RunPod handler that does what its input says, for tests of the local RunPod."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result


async def handle(job: dict[str, Any]) -> Any:
    errand = job["input"]
    match errand["do"]:
        case "answer":
            return errand["with"]
        case "environment":
            return sorted(os.environ)
        case "answer_nan":
            return {"loss": float("nan")}
        case "raise":
            raise ValueError("boom")
        case "report":
            await _report(job, errand["updates"])
            return {"done": True}
        case "report_carelessly":
            runpod.serverless.progress_update(job, {"step": 1})
            return {"done": True}
        case "report_and_wait":
            await _report(job, [{"step": 1}])
            await asyncio.sleep(600)
        case "leave_children_and_wait":
            await _report(job, [_leave_children()])
            await asyncio.sleep(600)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return None


async def _report(job: dict[str, Any], updates: list[Any]) -> None:
    async with AsyncClientSession() as session:
        for update in updates:
            await send_result(session, {"status": "IN_PROGRESS", "output": update}, job)


def _leave_children() -> dict[str, Any]:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    own_group = subprocess.Popen(sleeper, start_new_session=True)
    return {"handler": os.getpid(), "child": own_group.pid}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handle})
