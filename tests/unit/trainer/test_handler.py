"""What the handler refuses, and how signals pass through it."""

import asyncio
import json
import os
import signal

from lora_trainer import handler as handler_module
from lora_trainer.handler import handler
from tests.processes.waiting import PATIENCE_SECONDS
from tests.unit.trainer.project import request_input


async def test_malformed_request_is_refused_without_quoting_its_values():
    output = await handler({"id": "x", "input": {"job_id": "j", "run_id": "r", "channel": {"token": "secret"}}})
    assert output["status"] == "failed"
    assert output["failure"]["code"] == "request_invalid"
    assert "dataset" in output["error"]
    assert "secret" not in json.dumps(output)


async def test_unknown_protocol_version_is_refused_with_a_remedy():
    output = await handler({"id": "x", "input": request_input(protocol=2)})
    assert "protocol 2" in output["error"]
    assert "same release" in output["error"]


async def test_sigterm_reaches_the_execution_and_the_sdk(monkeypatch):
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: heard.append("sdk"))
    try:
        stopped = asyncio.Event()
        with handler_module._on_sigterm(stopped.set):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(stopped.wait(), PATIENCE_SECONDS)
        assert heard == ["sdk"]
    finally:
        signal.signal(signal.SIGTERM, previous)
