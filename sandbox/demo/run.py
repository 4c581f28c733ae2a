"""Runs one job from a queued row to a verified adapter. All parts are the real ones and run on this machine."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from lora_conversations.errors import DatasetUnusableError
from lora_conversations.reader import Example, read_examples
from lora_worker.errors import WorkerError
from sandbox.application import Application
from sandbox.demo.report import fetch_artifact, read_report, record_stages, show
from sandbox.errors import ChildFailedError, DemoError, SandboxError
from sandbox.processes import Child, remove_folder, start_child, temporary_folder
from sandbox.runpod import LocalRunPod
from sandbox.sample_text import write_sample_dataset
from sandbox.supabase import LocalSupabase

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = ROOT / ".sandbox"

BASE_MODEL = "sandbox/tiny-llama"
HYPERPARAMETERS: dict[str, Any] = {
    "base_model": BASE_MODEL,
    "epochs": 20,
    "rank": 16,
    "dropout": 0.0,
}
SAMPLE_SIZES = {"learning_rate": 1e-2, "batch_size": 4, "max_steps": 60, "max_length": 1024}
"""Settings for our own short conversations. Training takes half a minute on one core, and the adapter then answers in
whole sentences."""
USER_SIZES = {"learning_rate": 5e-3, "batch_size": 1, "max_steps": 60, "max_length": 2048}
"""Settings for a user's file, whose answers may be long."""

TRAINER_PACE = {"LORA_TRAINER_PROGRESS_SECONDS": "0.5", "LORA_TRAINER_GRANT_POLL_SECONDS": "0.5"}
"""Shorter waits of the trainer: its defaults suit a training of hours, and the demo's takes a minute."""

_ENDED = {"completed", "failed", "cancelled"}
_POLL_SECONDS = 0.3
_STALLED_SECONDS = 300
_MODEL_SECONDS = 600
_DAEMON_EXIT_SECONDS = 10

_BUILD_MODEL = "import pathlib, sys, sandbox.tiny_model as t; print(t.build_tiny_model(pathlib.Path(sys.argv[1])))"


@dataclass
class Machine:
    """The servers and folders that the demo uses."""

    supabase: LocalSupabase
    runpod: LocalRunPod
    base: Path
    folder: Path


def run(dataset: Path | None, console: Console) -> None:
    """Run the whole demo, with the user's `dataset` or with our own.

    Raises:
        SandboxError: a part of the demo failed; the text says which and why.
    """
    with ExitStack() as stack:
        machine = _start(stack, console)
        project = machine.supabase
        file = dataset or _sample(machine.folder)
        pairs = _count_pairs(file)
        console.print(f"[green]✓[/green] {file.name}: {pairs} pairs, {file.stat().st_size / 1000:.0f} kB")
        record_stages(project.database_url)
        application = Application(project, project.create_user("demo@example.com"))
        stack.callback(application.close)
        hyperparameters = HYPERPARAMETERS | (USER_SIZES if dataset else SAMPLE_SIZES)
        job_id = application.queue_job(application.add_dataset(file, pairs=pairs), hyperparameters, pairs=pairs)
        daemon = _start_daemon(machine)
        stack.callback(daemon.stop)
        job = _watch(application, job_id, daemon, console)
        _stop_daemon(daemon)
        if job["status"] != "completed":
            raise DemoError(f"the job ended {job['status']}: {job['error_message']}")
        adapter = machine.folder / "adapter"
        files = fetch_artifact(project, job["artifact_id"], adapter)
        report = read_report(project, job_id, files)
        Path("demo-report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n")
        shutil.copy(adapter / "loss.png", "demo-loss.png")
        show(report, _ask(machine.base, adapter, file), console)
        console.print("Written: demo-report.json, demo-loss.png")


def _start(stack: ExitStack, console: Console) -> Machine:
    began = time.monotonic()
    SANDBOX.mkdir(exist_ok=True)
    folder = temporary_folder(SANDBOX)
    stack.callback(remove_folder, folder)
    # The model is built while the servers start, which mostly wait.
    building = _python("-c", _BUILD_MODEL, SANDBOX / "cache", name="The tiny base model", folder=folder)
    stack.callback(building.stop)
    console.print("Starting (the first time takes a minute more: npm packages, base model)")
    supabase = stack.enter_context(LocalSupabase.start(SANDBOX))
    _tick(console, f"Supabase at {supabase.url} (PostgreSQL, REST, Storage)", began)
    base = Path(_output_of(building))
    megabytes = sum(file.stat().st_size for file in base.glob("*.safetensors")) / 1e6
    _tick(console, f"base model {BASE_MODEL}, {megabytes:.1f} MB", began)
    volume = folder / "volume"
    model = volume / "models" / BASE_MODEL
    model.parent.mkdir(parents=True)
    model.symlink_to(base, target_is_directory=True)
    runpod = stack.enter_context(LocalRunPod.start(env={"LORA_TRAINER_VOLUME": str(volume), **TRAINER_PACE}))
    _tick(console, f"RunPod at {runpod.api_url} (its API, the SDK's worker)", began)
    return Machine(supabase, runpod, base, folder)


def _tick(console: Console, text: str, began: float) -> None:
    console.print(f"[green]✓[/green] {text} [dim]{time.monotonic() - began:.1f} s[/dim]")


def _sample(folder: Path) -> Path:
    file = folder / "sample.jsonl"
    write_sample_dataset(file)
    return file


def _count_pairs(file: Path) -> int:
    with file.open("rb") as content:
        try:
            return sum(isinstance(item, Example) for item in read_examples(content))
        except DatasetUnusableError:
            return 0  # The job is queued anyway: the worker explains what is wrong with the dataset.


def _start_daemon(machine: Machine) -> Child:
    # The demo's daemon must not see settings that the user has made for a real project.
    foreign = ("SUPABASE_", "RUNPOD_", "GPU_CLUSTER_", "LORA_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return start_child(
        [Path(sysconfig.get_path("scripts")) / "lora-worker", "run"],
        name="The worker",
        log=SANDBOX / "demo-worker.log",
        cwd=machine.folder,
        env={
            **env,
            "SUPABASE_URL": machine.supabase.url,
            "SUPABASE_SERVICE_ROLE_KEY": machine.supabase.secret_key,
            "SUPABASE_PUBLISHABLE_KEY": machine.supabase.publishable_key,
            "GPU_CLUSTER_API_URL": machine.runpod.api_url,
            "GPU_CLUSTER_API_KEY": machine.runpod.api_key,
            "LORA_WORKER_POLL_SECONDS": "0.5",
            "LORA_WORKER_BASE_MODELS": BASE_MODEL,
            "LORA_WORKER_DEFAULT_BASE_MODEL": BASE_MODEL,
        },
    )


def _watch(application: Application, job_id: str, daemon: Child, console: Console) -> dict[str, Any]:
    """Show the job's row as the application would, until the job has ended; returns the last row."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<14}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TextColumn("{task.fields[detail]}"), console=console, transient=True) as progress:
        bar = progress.add_task("queued", total=100, detail="")
        stage, since = "queued", time.monotonic()
        changed, seen = time.monotonic(), ""
        while True:
            job = application.job(job_id)
            if job["current_stage"] != stage:
                _tick(console, stage, since)
                stage, since = job["current_stage"], time.monotonic()
            progress.update(bar, completed=float(job["progress"]), description=stage, detail=_detail(job))
            if job["status"] in _ENDED:
                return job
            if job["updated_at"] != seen:
                changed, seen = time.monotonic(), job["updated_at"]
            _check_alive(daemon, time.monotonic() - changed)
            time.sleep(_POLL_SECONDS)


def _detail(job: dict[str, Any]) -> str:
    metrics = job["current_metrics"] or {}
    if metrics.get("training_loss") is None:
        return ""
    detail = f"step {job['current_step']}/{job['total_steps']}  loss [bold]{metrics['training_loss']:.3f}[/bold]"
    return detail + (f"  {metrics['throughput']:,.0f} tokens/s" if metrics.get("throughput") else "")


def _check_alive(daemon: Child, unchanged_seconds: float) -> None:
    if daemon.returncode is not None:
        raise ChildFailedError(f"the worker ended with status {daemon.returncode}:\n{daemon.last_words()}")
    if unchanged_seconds > _STALLED_SECONDS:
        raise DemoError(f"the job's row has not changed for {_STALLED_SECONDS} s; see {daemon.log}")


def _stop_daemon(daemon: Child) -> None:
    if daemon.stop(patience_seconds=_DAEMON_EXIT_SECONDS) != 0:
        raise ChildFailedError(f"the worker did not end well after SIGTERM:\n{daemon.last_words()}")


def _ask(base: Path, adapter: Path, dataset: Path) -> dict[str, str]:
    child = _python("-m", "sandbox.demo.answers", base, adapter, dataset, name="The question", folder=adapter)
    try:
        answers: dict[str, str] = json.loads(_output_of(child))
    finally:
        child.stop()
    return answers


def _python(*arguments: str | Path, name: str, folder: Path) -> Child:
    return start_child([sys.executable, *arguments], name=name, log=folder / "python.log", cwd=ROOT)


def _output_of(child: Child) -> str:
    """Wait until a child has ended successfully, and return the last line that it printed."""
    try:
        status = child.process.wait(_MODEL_SECONDS)
    except subprocess.TimeoutExpired:
        raise ChildFailedError(f"{child.name} took longer than {_MODEL_SECONDS} s") from None
    if status != 0:
        raise ChildFailedError(f"{child.name} failed:\n{child.last_words()}")
    return child.last_words(lines=1)


def main() -> int:
    """Run the command; returns 0 if the job was completed, 1 after printing a sentence if not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make demo", description="A training job on your own machine")
    parser.add_argument("--dataset", type=Path, help="a file of your own, in any format of docs/formats.md")
    dataset = parser.parse_args().dataset
    console = Console(highlight=False)
    try:
        if dataset is not None and not dataset.is_file():
            raise DemoError(f"there is no file {dataset}")
        run(dataset, console)
    except (SandboxError, WorkerError) as error:
        console.print(f"[red]The demo stopped:[/red] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return 130
    return 0
