"""The handler started as RunPod's users start any worker: for one test input, and as a local API."""

import json
import os
import socket
import subprocess
import sys

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from tests.processes.waiting import PATIENCE_SECONDS
from tests.project import IMPORT_PATH

MALFORMED = {"input": {"job_id": "j", "run_id": "r", "channel": {"token": "secret-token"}}}


def start(*arguments, folder, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")} | variables
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "lora_trainer.handler", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": IMPORT_PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_malformed_test_input_ends_the_process_with_a_sentence(tmp_path):
    process = start("--test_input", json.dumps(MALFORMED), folder=tmp_path, LORA_TRAINER_GRACE_SECOND="hidden")
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert "The request's dataset is wrong" in output
    assert "LORA_TRAINER_GRACE_SECONDS may be meant" in output
    assert "hidden" not in output
    assert "Traceback" not in output


def test_the_local_api_answers_a_malformed_request_with_a_sentence(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port), folder=tmp_path)
    try:
        for attempt in Retrying(
            retry=retry_if_exception_type(httpx.ConnectError),
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_fixed(0.2),
        ):
            with attempt, httpx.Client(trust_env=False, timeout=30) as http:
                answer = http.post(f"http://127.0.0.1:{port}/runsync", json=MALFORMED)
        assert answer.status_code == 200
        assert "The request's dataset is wrong" in answer.text
        assert "secret-token" not in answer.text
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_SECONDS)
