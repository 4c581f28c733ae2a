"""A training process without a model, for tests of everything around the training.

With the environment of `standin_env`, the trainer's own handler starts this module instead of
`lora_trainer.recipe.train`, and `sandbox.standin_proof` where it would have the adapter tried. So check-in, progress,
cancelling, checkpoints and publishing are the real ones. A training has `max_steps` steps, or ten per epoch. Tests can
make it fail: with a `Mishap` as the job's seed in the middle of the training, or with words in the dataset in any
stage, such as “fail in saving”, “linger in preparing” (it stays there until it is stopped) or “linger in half” (after
half of its steps). A dataset with the words “answers side by side” gets an `evaluation.json`.

It writes the messages of the protocol as plain JSON; the handler checks them with the real models. Importing these
models here would take ten times as long as such a training, and the chaos suite trains thousands of jobs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

from lora_contract.crash_points import crash_point
from lora_trainer.recipe.stopping import StopSwitch
from lora_trainer.run.orphans import end_with_the_handler
from sandbox.standin_evaluation import ASKED_FOR, FIGURES, evaluation_file

_STEPS_PER_EPOCH = 10
_CHECKPOINT_STEPS = 5
_REPORT_SECONDS = 0.25
_TRAINING_PERCENT, _SAVING_PERCENT = 25, 95
_STAGE_MISHAP = re.compile(rb"(fail|linger) in (\w+)")


class Mishap(IntEnum):
    """Seeds that make a job go wrong in the middle of its training."""

    CRASH = 9001
    """The training process crashes, at every attempt."""
    CRASH_ONCE = 9002
    """The training process crashes, unless it has resumed from a checkpoint."""
    KILL_WORKER = 9003
    """The whole worker is killed, at every attempt."""
    LOSS_NOT_FINITE = 9004
    ENDLESS = 9005
    """The training continues until it is stopped."""


class TrainedStep(NamedTuple):
    """One training step of an execution of a run. `at` is in Unix seconds."""

    run_id: str
    execution_id: str
    step: int
    total_steps: int
    at: float


def standin_env(folder: Path, *, step_seconds: float = 0.01) -> dict[str, str]:
    """Return the endpoint's environment for fast trainings without a model; `folder` is the network volume.

    Every step is recorded in `folder / "steps.jsonl"`.
    """
    return {
        "LORA_TRAINER_CHILD": "sandbox.standin",
        "LORA_TRAINER_PROOF": "sandbox.standin_proof",
        "LORA_TRAINER_VOLUME": str(folder),
        "LORA_TRAINER_HEARTBEAT_SECONDS": "0.5",
        "LORA_TRAINER_PROGRESS_SECONDS": "0.2",
        "LORA_TRAINER_SETTLE_SECONDS": "0",
        "LORA_TRAINER_GRANT_POLL_SECONDS": "0.2",
        "LORA_STANDIN_STEP_SECONDS": str(step_seconds),
        "LORA_STANDIN_LOG": str(folder / "steps.jsonl"),
    }


def read_steps(log: Path) -> list[TrainedStep]:
    """Read all recorded steps, oldest first; empty if nothing was trained yet."""
    if not log.exists():
        return []
    return [TrainedStep(*json.loads(line)) for line in log.read_text().splitlines()]


def runs_trained_twice(steps: Iterable[TrainedStep]) -> set[str]:
    """Return the runs whose last step was taken by more than one execution: their GPU time was paid twice."""
    finished = {(step.run_id, step.execution_id) for step in steps if step.step == step.total_steps}
    return {run_id for run_id, executions in Counter(run_id for run_id, _ in finished).items() if executions > 1}


class _StoppedEarlyError(Exception):
    """The training was stopped by SIGTERM."""


class _NotFiniteError(Exception):
    """The job's seed says that the loss becomes NaN."""


class _StageFailedError(Exception):
    """The job's dataset says that this stage fails."""


class Training:
    """A training of one task, which is the JSON of `lora_trainer.run.task.Task`."""

    def __init__(self, task: dict[str, Any], events: TextIO) -> None:
        self._task = task
        self._events = events
        self._seed: int = task["hyperparameters"]["seed"]
        chosen = task["hyperparameters"]
        self._method: str = chosen.get("method", "sft")
        self._total_steps: int = chosen["max_steps"] or _STEPS_PER_EPOCH * chosen["epochs"]
        self._folder = Path(task["folder"])
        self._step_seconds = float(os.environ.get("LORA_STANDIN_STEP_SECONDS", "0.01"))
        self._log = os.environ.get("LORA_STANDIN_LOG")
        self._points: list[dict[str, Any]] = []
        self._resumed_from: int | None = None
        self._reported_at = 0.0
        dataset = Path(task["dataset"]).read_bytes()
        self._leaves_samples = ASKED_FOR in dataset
        self._mishaps = {(what.decode(), stage.decode()) for what, stage in _STAGE_MISHAP.findall(dataset)}
        self._stop = StopSwitch(self._end_before_training)

    def run(self) -> bool:
        """Train and write the outcome file; returns whether the artifact is complete."""
        try:
            self._train()
        except _StoppedEarlyError:
            self._write_outcome(
                "stopped", error={"code": "interrupted", "message": f"It was stopped after {len(self._points)} steps."}
            )
        except _NotFiniteError:
            self._write_outcome("failed", error={"code": "loss_not_finite", "message": "The loss became NaN."})
        except _StageFailedError as error:
            # A permanent error, so that there is no retry and the test sees the failure as a user would.
            self._write_outcome("failed", error={"code": "dataset_invalid", "message": f"It failed in {error}."})
        else:
            self._write_outcome("trained")
            return True
        return False

    def _train(self) -> None:
        for stage, percent in (("preparing", 10), ("loading_model", 15), ("configuring", 20)):
            self._report(stage, percent)
        self._points = self._checkpointed_points()
        self._resumed_from = len(self._points) or None
        self._report("training", _TRAINING_PERCENT)
        self._stop.training_begins()
        for step in range(len(self._points) + 1, self._total_steps + 1):
            if step == self._total_steps // 2:
                self._suffer()
            time.sleep(self._step_seconds)
            self._take(step)
            crash_point("trainer.train.step")
            is_last = step == self._total_steps
            if (self._stop.requested and not is_last) or step % _CHECKPOINT_STEPS == 0:
                self._save_checkpoint(step)
            if self._stop.requested and not is_last:
                raise _StoppedEarlyError
        self._report("saving", _SAVING_PERCENT)
        self._read_init_adapter()
        artifact = self._folder / "artifact"
        artifact.mkdir(parents=True, exist_ok=True)
        (artifact / "adapter_model.safetensors").write_bytes(self._task["fingerprint"].encode() * 16)
        (artifact / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        if self._leaves_samples:
            write_json_atomically(artifact / "evaluation.json", evaluation_file())

    def _read_init_adapter(self) -> None:
        """Read the earlier adapter with which the job asks to begin, as the training would."""
        if self._task.get("init_adapter") is not None:
            folder = self._folder / "init_adapter"
            json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_model.safetensors").read_bytes()

    def _rewards(self, step: int) -> dict[str, float]:
        """What a preference method measures beside the loss: both grow."""
        if self._method == "sft":
            return {}
        share = step / self._total_steps
        return {"reward_margin": round(share, 4), "reward_accuracy": round(0.5 + share / 2, 4)}

    def _take(self, step: int) -> None:
        point = {"step": step, "epoch": step / self._total_steps, "training_loss": round(1 + 3 / step, 4)}
        point |= self._rewards(step)
        self._points.append({**point, "learning_rate": 1e-4, "throughput": 1000.0, "timestamp": time.time()})
        if self._log is not None:
            taken = TrainedStep(self._task["run_id"], self._task["execution_id"], step, self._total_steps, time.time())
            # A short line is appended in a single write, so lines of several executions never mix.
            with Path(self._log).open("a") as file:
                file.write(json.dumps(taken) + "\n")
        if step in {1, self._total_steps} or time.monotonic() - self._reported_at > _REPORT_SECONDS:
            self._reported_at = time.monotonic()
            trained = (_SAVING_PERCENT - _TRAINING_PERCENT) * step / self._total_steps
            self._report("training", _TRAINING_PERCENT + trained, current_step=step, current_epoch=point["epoch"])

    def _suffer(self) -> None:
        if self._seed == Mishap.CRASH or (self._seed == Mishap.CRASH_ONCE and self._resumed_from is None):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._seed == Mishap.KILL_WORKER:
            os.kill(os.getppid(), signal.SIGKILL)
        if self._seed == Mishap.LOSS_NOT_FINITE:
            raise _NotFiniteError
        lingers = self._seed in {Mishap.ENDLESS, Mishap.KILL_WORKER} or ("linger", "half") in self._mishaps
        while lingers and not self._stop.requested:
            time.sleep(self._step_seconds)

    def _report(self, stage: str, progress: float, **more: Any) -> None:
        event = {"run_id": self._task["run_id"], "execution_id": self._task["execution_id"], "stage": stage}
        event |= {"progress": progress, "total_steps": self._total_steps, "points": self._points, **more}
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()
        if ("fail", stage) in self._mishaps:
            raise _StageFailedError(stage)
        while ("linger", stage) in self._mishaps and not self._stop.requested:
            time.sleep(self._step_seconds)

    def _checkpointed_points(self) -> list[dict[str, Any]]:
        """Return the curve up to the newest checkpoint that an execution of the job has saved for the same inputs."""
        marks = (
            json.loads(path.read_text())
            for path in Path(self._task["job_folder"]).glob("*/checkpoints/checkpoint-*/lora-trainer.json")
        )
        same = (mark["points"] for mark in marks if mark["fingerprint"] == self._task["fingerprint"])
        return max(same, key=len, default=[])

    def _save_checkpoint(self, step: int) -> None:
        folder = self._folder / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        mark = {"fingerprint": self._task["fingerprint"], "step": step, "points": self._points}
        write_json_atomically(folder / "lora-trainer.json", mark)

    def _end_before_training(self) -> NoReturn:
        self._write_outcome("stopped", error={"code": "interrupted", "message": "It was stopped before training."})
        os._exit(1)

    def _write_outcome(self, status: str, error: dict[str, str] | None = None) -> None:
        outcome = {"status": status, "fingerprint": self._task["fingerprint"], "error": error}
        if status == "trained":
            outcome |= {
                "points": self._points,
                "evaluation": FIGURES,
                "metrics": {
                    "final_training_loss": self._points[-1]["training_loss"],
                    **{f"final_{key}": value for key, value in self._rewards(self._total_steps).items()},
                },
                "summary": {
                    "base_model": self._task["hyperparameters"]["base_model"],
                    "method": self._method,
                    "init_adapter": (self._task.get("init_adapter") or {}).get("id"),
                    "dataset_sha256": self._task["dataset_sha256"],
                    "total_steps": self._total_steps,
                    "train_seconds": self._total_steps * self._step_seconds,
                    "resumed_from_step": self._resumed_from,
                },
            }
        write_json_atomically(self._folder / "outcome.json", outcome)


def write_json_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write a small file of JSON so that a reader finds either the old content or the new."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def main(arguments: list[str]) -> int:
    """Read the task from standard input, train, and write the outcome; returns 0 if the artifact is complete."""
    task = json.loads(sys.stdin.readline())
    end_with_the_handler()
    with os.fdopen(int(arguments[0]), "w", encoding="utf-8") as events:
        return 0 if Training(task, events).run() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
