"""`python -m sandbox.inference`: an inference endpoint on this machine, until SIGTERM or Ctrl-C.

The callers' key is in the environment variable LORA_INFERENCE_KEY.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import uvicorn
from starlette.concurrency import run_in_threadpool

from sandbox.inference.language_model import PeftModels
from sandbox.inference.runpod_address import InferenceApi
from sandbox.inference.scaling import ScaledWorker, Scaling, Time
from sandbox.inference.served import ServeSettings
from sandbox.inference.vllm import VllmServer
from sandbox.runpod.keys import Keys

KEY_VARIABLE = "LORA_INFERENCE_KEY"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.inference", description="An inference endpoint")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--endpoint", required=True, help="the endpoint's id")
    parser.add_argument("--model", required=True, help="the base's name, as adapters name it")
    parser.add_argument("--weights", type=Path, required=True, help="the folder of the base")
    parser.add_argument("--resolver-folder", type=Path, required=True, help="VLLM_LORA_RESOLVER_CACHE_DIR")
    parser.add_argument("--max-loras", type=int, default=4)
    parser.add_argument("--max-lora-rank", type=int, default=64)
    parser.add_argument("--cold-start-seconds", type=float, default=0.0)
    parser.add_argument("--idle-seconds", type=float, default=3600.0)
    return parser.parse_args()


def main() -> None:
    """Serve until a signal stops it."""
    arguments = _parse()
    settings = ServeSettings(
        model=arguments.model,
        max_loras=arguments.max_loras,
        max_lora_rank=arguments.max_lora_rank,
        resolver_folder=arguments.resolver_folder,
    )

    async def open_server() -> VllmServer:
        return VllmServer(settings, await run_in_threadpool(PeftModels, arguments.weights))

    scaling = Scaling(cold_start_seconds=arguments.cold_start_seconds, idle_seconds=arguments.idle_seconds)
    api = InferenceApi(arguments.endpoint, ScaledWorker(open_server, scaling, Time()), Keys(os.environ[KEY_VARIABLE]))
    uvicorn.run(
        api.app(), host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False,
        timeout_graceful_shutdown=2,
    )  # fmt: skip


if __name__ == "__main__":
    main()
