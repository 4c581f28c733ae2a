"""A RunPod handler that does what its input says, for tests of the local RunPod."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from typing import Any

import runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result, stream_result


async def handle(job: dict[str, Any]) -> Any:
    return await ERRANDS[job["input"]["do"]](job, job["input"])


async def _answer(_: dict[str, Any], errand: dict[str, Any]) -> Any:
    return errand["with"]


async def _answer_nan(*_: dict[str, Any]) -> Any:
    return {"loss": float("nan")}


async def _environment(*_: dict[str, Any]) -> Any:
    return sorted(os.environ)


async def _print(_: dict[str, Any], errand: dict[str, Any]) -> Any:
    print(*errand["lines"], sep="\n", flush=True)
    return {"printed": True}


async def _raise(*_: dict[str, Any]) -> Any:
    raise ValueError("boom")


async def _stream(job: dict[str, Any], errand: dict[str, Any]) -> None:
    async with AsyncClientSession() as session:
        await stream_result(session, {"output": errand["chunk"]}, job)


async def _report(job: dict[str, Any], errand: dict[str, Any]) -> Any:
    async with AsyncClientSession() as session:
        for update in errand["updates"]:
            await send_result(session, {"status": "IN_PROGRESS", "output": update}, job)
    return {"done": True}


async def _report_carelessly(job: dict[str, Any], _: dict[str, Any]) -> Any:
    runpod.serverless.progress_update(job, {"step": 1})
    return {"done": True}


async def _report_and_wait(job: dict[str, Any], _: dict[str, Any]) -> None:
    await _report(job, {"updates": [{"step": 1}]})
    await asyncio.sleep(600)


async def _leave_children_and_wait(job: dict[str, Any], _: dict[str, Any]) -> None:
    await _report(job, {"updates": [_leave_children()]})
    await asyncio.sleep(600)


async def _die(*_: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _leave_children() -> dict[str, Any]:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    own_group = subprocess.Popen(sleeper, start_new_session=True)
    (ping,) = multiprocessing.active_children()
    return {"handler": os.getpid(), "child": own_group.pid, "ping": ping.pid}


ERRANDS = {
    "answer": _answer,
    "answer_nan": _answer_nan,
    "die": _die,
    "environment": _environment,
    "leave_children_and_wait": _leave_children_and_wait,
    "print": _print,
    "raise": _raise,
    "report": _report,
    "report_and_wait": _report_and_wait,
    "report_carelessly": _report_carelessly,
    "stream": _stream,
}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handle})
