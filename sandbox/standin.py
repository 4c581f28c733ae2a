"""A training process without a model, for tests of everything around the training.

The trainer's own handler runs it instead of `trainer.train` when told to (`standin_env`), so check-in,
progress, cancelling, checkpoints and publishing are the real ones. It takes `max_steps` steps (20 by
default); a `Mishap` as the job's seed makes one job go wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainer.checkpoints import Mark, newest_checkpoint, write_mark
from trainer.crashpoints import reach
from trainer.errors import LossNotFiniteError, StoppedError, TrainingError
from trainer.gpu import GpuMonitor
from trainer.protocol import FinalMetrics, Point, Stage, Summary
from trainer.reporting import Reporter
from trainer.stopping import StopSwitch, end_with_the_handler
from trainer.task import Outcome, Task

_STEPS = 20
_CHECKPOINT_STEPS = 5


class Mishap(IntEnum):
    """Seeds that make a job go wrong in the middle of its training."""

    CRASH = 9001
    """The training process crashes, at every attempt."""
    CRASH_ONCE = 9002
    """It crashes unless it went on from a checkpoint."""
    KILL_WORKER = 9003
    """The whole worker is killed, at every attempt."""
    LOSS_NOT_FINITE = 9004
    ENDLESS = 9005
    """It goes on until it is stopped."""


class StandinSettings(BaseSettings):
    """Read from `LORA_STANDIN_…` variables."""

    model_config = SettingsConfigDict(env_prefix="LORA_STANDIN_", extra="ignore", frozen=True)

    step_seconds: float = Field(default=0.01, ge=0)
    log: Path | None = None
    """File to which every step of every execution is appended, see `read_steps`."""


@dataclass(frozen=True)
class TrainedStep:
    """One step that some execution of a run has taken, at a time in Unix seconds."""

    run_id: str
    execution_id: str
    step: int
    total_steps: int
    at: float


def standin_env(folder: Path, *, step_seconds: float = 0.01) -> dict[str, str]:
    """The endpoint's environment for fast trainings without a model; `folder` is the network volume.

    The steps are noted in `folder / "steps.jsonl"`.
    """
    return {
        "LORA_TRAINER_CHILD": "sandbox.standin",
        "LORA_TRAINER_VOLUME": str(folder),
        "LORA_TRAINER_HEARTBEAT_SECONDS": "0.5",
        "LORA_TRAINER_PROGRESS_SECONDS": "0.2",
        "LORA_TRAINER_SETTLE_SECONDS": "0",
        "LORA_TRAINER_GRANT_POLL_SECONDS": "0.2",
        "LORA_STANDIN_STEP_SECONDS": str(step_seconds),
        "LORA_STANDIN_LOG": str(folder / "steps.jsonl"),
    }


def read_steps(log: Path) -> list[TrainedStep]:
    """Every step that was taken, oldest first; none when nothing trained yet."""
    if not log.exists():
        return []
    return [TrainedStep(**json.loads(line)) for line in log.read_text().splitlines()]


def runs_trained_twice(steps: Iterable[TrainedStep]) -> set[str]:
    """The runs whose last step was taken by more than one execution: a GPU was paid twice for them."""
    finished = {(step.run_id, step.execution_id) for step in steps if step.step == step.total_steps}
    return {run_id for run_id, executions in Counter(run_id for run_id, _ in finished).items() if executions > 1}


def train(task: Task, reporter: Reporter, stop: StopSwitch, settings: StandinSettings) -> Outcome:
    """Go through the stages and the steps, and leave an artifact of a few bytes."""
    for stage in (Stage.PREPARING, Stage.LOADING_MODEL, Stage.CONFIGURING):
        reporter.stage(stage)
    total_steps = task.hyperparameters.max_steps or _STEPS
    found = newest_checkpoint(task.job_folder, task.fingerprint)
    resumed = found[1] if found else None
    points = list(resumed.points) if resumed else []

    reporter.stage(Stage.TRAINING)
    stop.training_begins()
    for step in range(len(points) + 1, total_steps + 1):
        if step == total_steps // 2:
            _suffer(task.hyperparameters.seed, stop, settings, first_attempt=resumed is None)
        time.sleep(settings.step_seconds)
        points.append(_point(step, total_steps))
        _note(task, step, total_steps, settings.log)
        reporter.step(points[-1], points, total_steps=total_steps, eta_seconds=None)
        reach("trainer.train.step")
        if (stop.requested and step < total_steps) or step % _CHECKPOINT_STEPS == 0:
            _save_checkpoint(task, points)
        if stop.requested and step < total_steps:
            raise StoppedError(
                f"The training was stopped after step {step} of {total_steps}.", "The next attempt goes on from there."
            )

    reporter.stage(Stage.SAVING)
    task.artifact.mkdir(parents=True, exist_ok=True)
    (task.artifact / "adapter_model.safetensors").write_bytes(task.fingerprint.encode() * 16)
    (task.artifact / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    return Outcome(
        status="trained",
        fingerprint=task.fingerprint,
        points=points,
        metrics=FinalMetrics(first_training_loss=points[0].training_loss, final_training_loss=points[-1].training_loss),
        summary=Summary(
            base_model=task.hyperparameters.base_model,
            dataset_sha256=task.dataset_sha256,
            total_steps=total_steps,
            train_seconds=total_steps * settings.step_seconds,
            resumed_from_step=resumed.step if resumed else None,
        ),
    )


def _suffer(seed: int, stop: StopSwitch, settings: StandinSettings, *, first_attempt: bool) -> None:
    if seed == Mishap.CRASH or (seed == Mishap.CRASH_ONCE and first_attempt):
        os.kill(os.getpid(), signal.SIGSEGV)
    if seed == Mishap.KILL_WORKER:
        os.kill(os.getppid(), signal.SIGKILL)
    if seed == Mishap.LOSS_NOT_FINITE:
        raise LossNotFiniteError("The loss became NaN at the middle of the training.", "Lower the learning rate.")
    while seed in {Mishap.ENDLESS, Mishap.KILL_WORKER} and not stop.requested:
        time.sleep(settings.step_seconds)


def _point(step: int, total_steps: int) -> Point:
    return Point(
        step=step,
        epoch=round(step / total_steps, 4),
        training_loss=round(1 + 3 / step, 4),
        learning_rate=1e-4,
        throughput=1000.0,
        timestamp=time.time(),
    )


def _note(task: Task, step: int, total_steps: int, log: Path | None) -> None:
    if log is not None:
        taken = TrainedStep(task.run_id, task.execution_id, step, total_steps, time.time())
        # One write of one short line: appending executions don't mix them.
        with log.open("a") as file:
            file.write(json.dumps(asdict(taken)) + "\n")


def _save_checkpoint(task: Task, points: list[Point]) -> None:
    step = points[-1].step
    folder = task.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    write_mark(folder, Mark(fingerprint=task.fingerprint, step=step, points=points))


def main(arguments: list[str]) -> int:
    """Read the task, train, leave the outcome; 0 when the artifact is whole."""
    task = Task.model_validate_json(sys.stdin.readline())
    end_with_the_handler()
    with os.fdopen(int(arguments[0]), "w", encoding="utf-8") as events:
        outcome = attempt(task, Reporter(events, task, GpuMonitor(wanted=False)))
    outcome.write(task.folder)
    return 0 if outcome.status == "trained" else 1


def attempt(task: Task, reporter: Reporter) -> Outcome:
    """`train`, with every failure turned into an outcome."""
    try:
        return train(task, reporter, StopSwitch(lambda: _end_before_training(task)), StandinSettings())
    except TrainingError as error:
        return _failure(task, error)


def _end_before_training(task: Task) -> NoReturn:
    error = StoppedError("The training was stopped before its first step.", "The next attempt starts anew.")
    _failure(task, error).write(task.folder)
    os._exit(1)


def _failure(task: Task, error: TrainingError) -> Outcome:
    return Outcome(
        status="stopped" if isinstance(error, StoppedError) else "failed",
        fingerprint=task.fingerprint,
        error=error.as_protocol(),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
