"""The command `lora-worker gpu-server`: the trainer on this machine's GPUs, for workers elsewhere."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lora_worker.commands.terminal import (
    EXIT_FAILED,
    EXIT_USAGE,
    AsJson,
    command_group,
    refuse,
    require_packages,
    run_or_exit,
    unconnected_settings_or_exit,
)

commands = command_group()

KEY_VARIABLE = "LORA_WORKER_GPU_SERVER_KEY"
MODULE = "lora_trainer.served"
_PACKAGES = ("starlette", "uvicorn")


@commands.command()
def gpu_server(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any free one.")] = 8643,
    data: Annotated[
        Path, typer.Option(help="Folder of its queue and of the trainers' logs; what is queued there survives.")
    ] = Path("gpu-server"),
    gpus: Annotated[
        str,
        typer.Option(
            help="GPUs to use, comma-separated: indexes or UUIDs, as nvidia-smi -L lists them; empty: all GPUs; "
            "cpu: none, one training on the CPU."
        ),
    ] = "",
    python: Annotated[
        Path, typer.Option(help="The Python in which the trainer is installed; by default the one of this command.")
    ] = Path(sys.executable),
    grace_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="How long a stopped trainer may take to save a checkpoint.")
    ] = 90,
    as_json: AsJson = False,
) -> None:
    """Train the jobs that a worker with LORA_WORKER_LAUNCHER=gpu-server submits, one a GPU, until Ctrl-C.

    The key is the variable LORA_WORKER_GPU_SERVER_KEY, in the environment or in .env.
    """
    require_packages("the GPU server", _PACKAGES, "gpu-server")

    from lora_contract.words import counted
    from lora_worker.errors import ArgumentError, WorkerError
    from lora_worker.gpu_server.gpus import choose_gpus
    from lora_worker.gpu_server.runner import Machine
    from lora_worker.gpu_server.serve import serve_gpus
    from lora_worker.launchers.registry import hidden_from_trainers
    from lora_worker.observability.telemetry import configure_logging

    key = _key_or_exit()
    configure_logging(unconnected_settings_or_exit())
    _require_trainer(python)
    try:
        slots = choose_gpus(gpus)
    except WorkerError as error:
        raise refuse(str(error), EXIT_USAGE if isinstance(error, ArgumentError) else EXIT_FAILED) from None
    chosen = [gpu for gpu in slots if gpu is not None]
    machine = Machine(
        [str(python), "-u", "-m", MODULE],
        slots,
        data.resolve(),
        grace_seconds,
        hidden=hidden_from_trainers(os.environ),
    )

    def ready(url: str) -> None:
        if as_json:
            typer.echo(json.dumps({"url": url, "gpus": chosen}))
            return
        typer.echo(f"Serving {counted(len(chosen), 'GPU')} at {url}" if chosen else f"Serving the CPU at {url}")

    run_or_exit(serve_gpus(machine, key=key, host=host, port=port, ready=ready))


def _key_or_exit() -> str:
    from pydantic import SecretStr

    from lora_worker.configuration.environment import first_value
    from lora_worker.errors import SettingsError
    from lora_worker.launchers.gpu_server.settings import server_key_fault

    try:
        key = first_value([KEY_VARIABLE])
    except SettingsError as error:
        raise refuse(str(error), EXIT_USAGE) from None
    fault = server_key_fault(SecretStr(key)) if key else "is missing; make one with openssl rand -hex 32"
    if key is None or fault:
        raise refuse(f"{KEY_VARIABLE} {fault}", EXIT_USAGE)
    return key


def _require_trainer(python: Path) -> None:
    """Exit with a sentence where the trainer can't be started with this Python."""
    import subprocess

    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({MODULE!r}) is None)"
    try:
        found = subprocess.run([str(python), "-c", look], capture_output=True, timeout=60, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise refuse(
            f"{python} can't be run ({type(error).__name__}): name another with --python", EXIT_USAGE
        ) from None
    if found.returncode != 0:
        text = (
            f"the trainer is not installed for {python}: run `pip install '.[trainer]'` there, or name another --python"
        )
        raise refuse(text, EXIT_USAGE)
