"""Runs one job from a queued row to a verified adapter. All parts are the real ones and run on this machine."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from lora_contract.serving import SERVING_FOLDER
from lora_contract.words import counted
from lora_conversations.errors import DatasetUnusableError
from lora_conversations.reader import Example, read_examples
from lora_worker.errors import WorkerError
from sandbox.application import Application
from sandbox.demo.answers import Comparison, Conversation, held_out_questions
from sandbox.demo.bases import BASES, TINY, DemoBase, Goal
from sandbox.demo.calling import call_by_name, check_manner, show_served
from sandbox.demo.findings import judge, keep_record, show_answers, show_recorded
from sandbox.demo.places import LAUNCHERS, start_launcher, why_not_called
from sandbox.demo.report import fetch_artifact, read_report, record_stages, show
from sandbox.errors import ChildFailedError, DemoError, SandboxError
from sandbox.inference import LocalInference
from sandbox.processes import Child, own_environment, remove_folder, start_child, temporary_folder
from sandbox.supabase import LocalSupabase

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = ROOT / ".sandbox"

TRAINER_PACE = {"LORA_TRAINER_PROGRESS_SECONDS": "0.5", "LORA_TRAINER_GRANT_POLL_SECONDS": "0.5"}
"""Shorter waits of the trainer: its defaults suit a training of hours, and the demo's takes a minute."""

_ENDED = {"completed", "failed", "cancelled"}
_POLL_SECONDS = 0.3
_STALLED_SECONDS = 300
_MODEL_SECONDS = 1800
"""How long a base model may take to be made, with a download over a slow line, and all questions to be answered."""
_DAEMON_EXIT_SECONDS = 10


@dataclass
class Machine:
    """The servers and folders that the demo uses."""

    supabase: LocalSupabase
    launcher: dict[str, str]
    """The settings by which the worker launches trainings."""
    inference: LocalInference | None
    """The endpoint that answers with the adapter; None where it would not find the adapter."""
    base: DemoBase
    weights: Path
    """The folder of the base model."""
    folder: Path

    def settings(self) -> dict[str, str]:
        """The environment of `lora-worker`, without settings that the user has made for a real project."""
        return {
            **own_environment(),
            "SUPABASE_URL": self.supabase.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.supabase.secret_key,
            "SUPABASE_PUBLISHABLE_KEY": self.supabase.publishable_key,
            **(self.inference.environment() if self.inference else {}),
        }


def run(
    base: DemoBase, dataset: Path | None, console: Console, *, launcher: str = "runpod", record: bool = False
) -> None:
    """Run the whole demo, with the user's `dataset` or with our own.

    `launcher` is what trains: `runpod`, `gpu-server` or `runpod-pods`. `record` keeps the answers in the repository,
    for the demo of the tiny model to show them.

    Raises:
        SandboxError: a part of the demo failed, or its goal was missed; the text says which and why.
    """
    with ExitStack() as stack:
        machine = _start(stack, base, launcher, console)
        project = machine.supabase
        file = dataset or _sample(base, machine.folder)
        pairs = _count_pairs(file)
        console.print(f"[green]✓[/green] {file.name}: {pairs} pairs, {file.stat().st_size / 1000:.0f} kB")
        record_stages(project.database_url)
        application = Application(project, project.create_user("demo@example.com"))
        stack.callback(application.close)
        settings = base.user_settings if dataset else base.sample_settings
        hyperparameters = {"base_model": base.name, **settings}
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
        goal = None if dataset else base.goal
        questions = _questions(base, goal, file, adapter)
        not_called = why_not_called(launcher)
        with ThreadPoolExecutor(max_workers=1) as beside:
            # The endpoint loads the base at its first request, meanwhile.
            asked = questions[:1] if not_called is None else []
            called = beside.submit(call_by_name, machine.settings(), job_id, asked)
            findings = judge(_compare(machine, adapter, questions, console), goal)
            served = called.result()
        found = report.as_json() | findings.as_json()
        found |= {"served": served and asdict(served), "not_served": not_called}
        Path("demo-report.json").write_text(json.dumps(found, indent=2) + "\n")
        shutil.copy(adapter / "loss.png", "demo-loss.png")
        show(report, console)
        show_answers(findings, console)
        show_served(served, console, why_not=not_called)
        if base is TINY:
            show_recorded(console)
        console.print("Written: demo-report.json, demo-loss.png")
        findings.check()
        check_manner(served, goal, findings.comparison)
        if record:
            keep_record(findings)


def _start(stack: ExitStack, base: DemoBase, launcher: str, console: Console) -> Machine:
    began = time.monotonic()
    SANDBOX.mkdir(exist_ok=True)
    folder = temporary_folder(SANDBOX)
    stack.callback(remove_folder, folder)
    # The model is built while the servers start, which mostly wait.
    making = _python(*base.making, SANDBOX / "cache", name=f"Making {base.name}", folder=folder)
    stack.callback(making.stop)
    console.print(f"Starting (the first time takes a minute more: npm packages, {base.first_time})")
    supabase = stack.enter_context(LocalSupabase.start(SANDBOX))
    _tick(console, f"Supabase at {supabase.url} (PostgreSQL, REST, Storage)", began)
    weights = Path(_output_of(making))
    megabytes = sum(file.stat().st_size for file in weights.glob("*.safetensors")) / 1e6
    _tick(console, f"base model {base.name}, {megabytes:.1f} MB", began)
    volume = folder / "volume"
    model = volume / "models" / base.name
    model.parent.mkdir(parents=True)
    model.symlink_to(weights, target_is_directory=True)
    env = {"LORA_TRAINER_VOLUME": str(volume), **TRAINER_PACE}
    settings, told = start_launcher(stack, launcher, folder, env)
    _tick(console, told, began)
    inference = None
    if why_not_called(launcher) is None:
        inference = stack.enter_context(
            LocalInference.start(base.name, weights, volume / SERVING_FOLDER, log=folder / "inference.log")
        )
        _tick(console, f"inference endpoint at {inference.openai_url} (asleep)", began)
    return Machine(supabase, settings, inference, base, weights, folder)


def _tick(console: Console, text: str, began: float) -> None:
    console.print(f"[green]✓[/green] {text} [dim]{time.monotonic() - began:.1f} s[/dim]")


def _sample(base: DemoBase, folder: Path) -> Path:
    file = folder / "sample.jsonl"
    base.write_sample(file)
    return file


def _count_pairs(file: Path) -> int:
    with file.open("rb") as content:
        try:
            return sum(isinstance(item, Example) for item in read_examples(content))
        except DatasetUnusableError:
            return 0  # The job is queued anyway: the worker explains what is wrong with the dataset.


def _start_daemon(machine: Machine) -> Child:
    return start_child(
        [Path(sysconfig.get_path("scripts")) / "lora-worker", "run"],
        name="The worker",
        log=SANDBOX / "demo-worker.log",
        cwd=machine.folder,
        env={
            **machine.settings(),
            **machine.launcher,
            "LORA_WORKER_POLL_SECONDS": "0.5",
            "LORA_WORKER_BASE_MODELS": machine.base.name,
            "LORA_WORKER_DEFAULT_BASE_MODEL": machine.base.name,
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


def _questions(base: DemoBase, goal: Goal | None, dataset: Path, adapter: Path) -> list[Conversation]:
    """What base and adapter are asked: the goal's questions, or conversations that the training held out."""
    if goal is not None:
        return [row["messages"] for row in goal.held_out]
    split = json.loads((adapter / "split.json").read_text())
    return held_out_questions(dataset, split, base.questions)


def _compare(machine: Machine, adapter: Path, questions: list[Conversation], console: Console) -> Comparison:
    if not questions:
        return Comparison([], [], [])
    asked = machine.folder / "questions.json"
    asked.write_text(json.dumps(questions))
    with console.status(f"asking base and adapter {counted(len(questions), 'question')}"):
        child = _python(
            "-m", "sandbox.demo.answers", machine.weights, adapter, asked, name="The questions", folder=machine.folder
        )
        try:
            return Comparison(**json.loads(_output_of(child)))
        finally:
            child.stop()


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
    """Run the command; returns 0 if all went well, 1 after printing a sentence if not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make demo", description="A training job on your own machine")
    parser.add_argument(
        "--model", choices=BASES, default="tiny", help="the base model: tiny takes a minute, smollm2 five"
    )
    parser.add_argument("--dataset", type=Path, help="a file of your own, in any format of docs/formats.md")
    parser.add_argument("--launcher", choices=LAUNCHERS, default=next(iter(LAUNCHERS)), help="what trains")
    parser.add_argument("--record", action="store_true", help="keep smollm2's answers for the tiny demo to show")
    options = parser.parse_args()
    console = Console(highlight=False)
    try:
        if options.dataset is not None and not options.dataset.is_file():
            raise DemoError(f"there is no file {options.dataset}")
        if options.record and (options.model != "smollm2" or options.dataset is not None):
            raise DemoError("--record is for MODEL=smollm2 with its own dataset")
        run(BASES[options.model], options.dataset, console, launcher=options.launcher, record=options.record)
    except (SandboxError, WorkerError) as error:
        console.print(f"[red]The demo stopped:[/red] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return 130
    return 0
