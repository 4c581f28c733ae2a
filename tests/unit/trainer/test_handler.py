"""What the handler refuses, and how signals pass through it."""

import asyncio
import json
import os
import signal
import subprocess
import sys

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


def test_no_http_client_logs_the_urls_that_it_calls():
    """The URLs of datasets, uploads and of the hub's downloads are signed."""
    code = (
        "import logging; from lora_trainer.run.logs import configure_logging; configure_logging();"
        "url = 'https://x?token=secret';"
        "[logging.getLogger(name).info('HTTP Request: GET %s', url) for name in ('httpx', 'httpx2')];"
        "import httpx2, huggingface_hub.utils._http as used; assert used.httpx2 is httpx2;"
        "logging.getLogger('lora_trainer').info('shown')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "secret" not in done.stderr
    assert "shown" in done.stderr
