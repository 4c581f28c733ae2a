"""The endpoint as one object: a process of its own, since torch is imported there, which ends with this one."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from sandbox.processes import Child, free_ports, port_answers, start_child, wait_until

ROOT = Path(__file__).resolve().parents[2]
_CALL_SECONDS = 30


class LocalInference:
    """An endpoint that answers with a base and its adapters. `start` starts it; the end of its context stops it.

    No model is loaded before the first request: until then the endpoint is asleep.
    """

    def __init__(self, child: Child, port: int, endpoint: str, api_key: str) -> None:
        self.endpoint = endpoint
        self.api_key = api_key
        self.api_url = f"http://127.0.0.1:{port}/v2/{endpoint}"
        self.openai_url = f"{self.api_url}/openai/v1"
        """The `base_url` for an OpenAI client, as callers of RunPod have it."""
        self._port = port
        self._child = child

    @classmethod
    def start(
        cls,
        model: str,
        weights: Path,
        resolver_folder: Path,
        *,
        log: Path,
        endpoint: str = "chat",
        api_key: str | None = None,
        cold_start_seconds: float = 0.0,
        idle_seconds: float = 3600.0,
        max_loras: int = 4,
        max_lora_rank: int = 64,
    ) -> Self:
        """Start an endpoint.

        Args:
            model: the base's name, as adapters name it.
            weights: the folder of the base.
            resolver_folder: the folder of adapters on the shared volume; it may be made later.
            log: the file for the process's output.
            endpoint: its id.
            api_key: the bearer token of callers; a new one by default.
            cold_start_seconds: how long a worker takes before it loads the model.
            idle_seconds: after so long without a request the worker ends.
            max_loras: how many adapters are kept in memory.
            max_lora_rank: the highest rank that is served.

        Raises:
            ChildFailedError: the process ended or did not answer.
        """
        (port,) = free_ports(1)
        key = api_key or f"rpa_{secrets.token_hex(20)}"
        arguments = {
            "port": port,
            "endpoint": endpoint,
            "model": model,
            "weights": weights,
            "resolver-folder": resolver_folder,
            "max-loras": max_loras,
            "max-lora-rank": max_lora_rank,
            "cold-start-seconds": cold_start_seconds,
            "idle-seconds": idle_seconds,
        }
        child = start_child(
            [sys.executable, "-m", "sandbox.inference", *(f"--{name}={value}" for name, value in arguments.items())],
            name="The inference endpoint",
            log=log,
            cwd=ROOT,
            env={**os.environ, "LORA_INFERENCE_KEY": key, "HF_HUB_OFFLINE": "1"},
        )
        wait_until(lambda: port_answers(port), child)
        return cls(child, port, endpoint, key)

    def environment(self) -> dict[str, str]:
        """The settings with which `lora-worker ask` finds it. Its key replaces that of the trainer's endpoint."""
        return {
            "GPU_CLUSTER_API_URL": f"http://127.0.0.1:{self._port}/v2/trainer",
            "GPU_CLUSTER_API_KEY": self.api_key,
            "LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID": self.endpoint,
        }

    def release(self) -> None:
        """Replace the worker, as a change of the endpoint does."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        url = f"http://127.0.0.1:{self._port}/sandbox/release"
        httpx.post(url, headers=headers, timeout=_CALL_SECONDS).raise_for_status()

    def stop(self) -> None:
        """End the process."""
        self._child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
