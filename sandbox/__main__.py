"""`python -m sandbox`: a Supabase and a RunPod on this machine, to try `lora-worker` by hand, until SIGTERM or Ctrl-C.

The variables of the worker are written into `.sandbox/environment` for that time. Their keys open this sandbox only.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.processes import remove_folder, temporary_folder
from sandbox.runpod import LocalRunPod
from sandbox.sample_text import write_sample_dataset
from sandbox.supabase import LocalSupabase
from sandbox.tiny_model import build_tiny_model

_SANDBOX = Path(__file__).resolve().parents[1] / ".sandbox"
_BASE = "sandbox/tiny-llama"
_USER = "you@example.com"


@contextmanager
def sandbox(root: Path) -> Iterator[dict[str, str]]:
    """Start both, with a tiny base model and a user; yields the environment of `lora-worker`, stops them in the end.

    Raises:
        SandboxError: a part did not start; the text says what to do.
    """
    root.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = temporary_folder(root)
        stack.callback(remove_folder, folder)
        model = folder / "models" / _BASE
        model.parent.mkdir(parents=True)
        model.symlink_to(build_tiny_model(root / "cache"), target_is_directory=True)
        project = stack.enter_context(LocalSupabase.start(root))
        runpod = stack.enter_context(LocalRunPod.start(env={"LORA_TRAINER_VOLUME": str(folder)}))
        project.create_user(_USER)
        yield {
            "SUPABASE_URL": project.url,
            "SUPABASE_SERVICE_ROLE_KEY": project.secret_key,
            "SUPABASE_PUBLISHABLE_KEY": project.publishable_key,
            "LORA_WORKER_DATABASE_URL": project.database_url,
            "GPU_CLUSTER_API_URL": runpod.api_url,
            "GPU_CLUSTER_API_KEY": runpod.api_key,
            "LORA_WORKER_RUNPOD_API_URL": runpod.rest_url,
            "LORA_WORKER_BASE_MODELS": _BASE,
            "LORA_WORKER_DEFAULT_BASE_MODEL": _BASE,
        }


@contextmanager
def written(environment: Mapping[str, str], file: Path) -> Iterator[None]:
    """Keep the variables in a file that a shell reads, and that nobody else can; it is removed in the end."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600, exist_ok=False)
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def main() -> int:
    """Serve until a signal stops it; returns 1 if it can't start."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    file, sample = _SANDBOX / "environment", _SANDBOX / "sample.jsonl"
    try:
        with sandbox(_SANDBOX) as environment, written(environment, file):
            write_sample_dataset(sample)
            sys.stdout.write(
                f"Supabase at {environment['SUPABASE_URL']}, RunPod at {environment['GPU_CLUSTER_API_URL']}; "
                "Ctrl-C stops both and removes their data.\n"
                f"In other terminals, in this folder: . {os.path.relpath(file)}; then\n"
                "  .venv/bin/lora-worker doctor\n"
                "  .venv/bin/lora-worker run\n"
                f"  .venv/bin/lora-worker enqueue {os.path.relpath(sample)} --user {_USER} --epochs 1\n"
            )
            sys.stdout.flush()
            stopped.wait()
    except SandboxError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
