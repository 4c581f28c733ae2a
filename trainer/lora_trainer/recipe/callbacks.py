"""What happens after each step: the curve, checkpoints, validation, and reasons to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from lora_contract.crash_points import crash_point
from lora_contract.curve import Curve, validation_points
from lora_contract.protocol import Point
from lora_trainer.errors import LossNotFiniteError, SupersededError
from lora_trainer.recipe.checkpoints import BEST_NAME, Mark, remove_others, write_mark
from lora_trainer.recipe.stopping import StopSwitch
from lora_trainer.run.events import Reporter
from lora_trainer.run.gpu import GpuMonitor
from lora_trainer.run.task import Task
from lora_trainer.run.volume import JobFolder, naming_full_disks

_WINDOW = 5
_EXPLODED = 3.0
_EVALUATIONS = 10


def validates_after(step: int, total_steps: int, chart_points: int) -> bool:
    """Whether the held-out examples are looked at after `step`: about ten times, and at the end."""
    evaluations = min(_EVALUATIONS, validation_points(chart_points))
    return step == total_steps or step % math.ceil(total_steps / evaluations) == 0


def has_exploded(losses: list[float]) -> bool:
    """Whether the last losses are all far above the first: nothing that more steps would mend."""
    return len(losses) > _WINDOW and min(losses[-_WINDOW:]) > _EXPLODED * losses[0] + 1


@dataclass
class Best:
    """The adapter with the lowest validation loss so far."""

    step: int | None = None
    loss: float = math.inf
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluations_without_gain: int = 0


class EvaluationLeftError(Exception):
    """A stop was requested while the held-out examples were looked at."""


class RunCallback(TrainerCallback):
    """Follows one training. Holds the whole curve in `points` and the best adapter in `best`."""

    def __init__(
        self,
        task: Task,
        reporter: Reporter,
        stop: StopSwitch,
        gpu: GpuMonitor,
        *,
        validates: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task = task
        self._folder = JobFolder(task.job_folder, task.execution_id)
        self._reporter = reporter
        self._stop = stop
        self._gpu = gpu
        self._validates = validates
        self._clock = clock
        self._curve = Curve(limit=task.chart_points)
        self._losses: list[float] = []
        self._tokens = 0
        self._seconds_before = 0.0
        self._begun = self._saved = self._step_ended = clock()
        self._first_step = self._total_steps = 0
        self._marked_step: int | None = None
        self._validation_due = False
        self.evaluate: Callable[[], object] | None = None
        """The trainer's own; for an evaluation that an interruption left out."""
        self.best = Best()
        self.loss_before: float | None = None
        """The validation loss of the base, before the first step."""
        self.stopped = False
        """Whether the training ended because it was told to."""
        self.stopped_early_at: int | None = None
        """The step after which the validation loss was given up on."""

    @property
    def points(self) -> list[Point]:
        """The curve so far, each step once."""
        return self._curve.points

    @property
    def train_seconds(self) -> float:
        """Seconds of training, those before the checkpoint included."""
        return self._seconds_before + self._clock() - self._begun

    def restore(self, checkpoint: Path, mark: Mark) -> None:
        """Go on from a checkpoint."""
        self._curve = Curve(mark.points, limit=self._task.chart_points)
        self._losses = [point.training_loss for point in mark.points if point.training_loss is not None]
        self._seconds_before = mark.train_seconds
        self.loss_before = mark.loss_before
        self._validation_due = mark.validation_due
        if mark.best_step is not None and mark.best_loss is not None:
            weights = load_file(checkpoint / BEST_NAME)
            self.best = Best(mark.best_step, mark.best_loss, weights, mark.evaluations_without_gain)

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clocks; look at the base's loss, or make up for an evaluation that an interruption left out."""
        self._begun = self._saved = self._step_ended = self._clock()
        self._first_step, self._total_steps = state.global_step, state.max_steps
        first = self._validates and state.global_step == 0
        if (first or self._validation_due) and self.evaluate is not None:
            self.evaluate()
            self._step_ended = self._clock()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what follows this step: a checkpoint, a look at the held-out examples, the end."""
        crash_point("trainer.train.step")
        if self._stop.requested:
            self.stopped = state.global_step < state.max_steps
            control.should_training_stop = True
        due = self._clock() - self._saved >= self._task.checkpoint_minutes * 60
        control.should_save = (due or self.stopped) and state.global_step < state.max_steps
        # An evaluation takes minutes, and a stop leaves one: the checkpoint comes first, `on_save` evaluates.
        control.should_evaluate = not control.should_save and self._lacks_validation(state.global_step)

    @override
    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave an evaluation when a stop is requested; the next attempt makes up for it.

        Raises:
            EvaluationLeftError: caught where the evaluation began.
        """
        # After the last step there is nothing left to go on from: the evaluation is finished, then the adapter saved.
        if not self._stop.requested or state.global_step >= state.max_steps:
            return
        self.stopped = control.should_training_stop = True
        control.should_evaluate = False
        control.should_save = self._marked_step != state.global_step
        raise EvaluationLeftError

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take what the trainer logs into the curve; every step is logged."""
        step, logs = state.global_step, logs or {}
        if "eval_loss" in logs and step == 0:
            self.loss_before = logs["eval_loss"]
            return
        if "eval_loss" in logs:
            self._note_validation(step, logs["eval_loss"], kwargs["model"])
            if self._gave_up():
                self.stopped_early_at = step
                control.should_training_stop = True
        elif "loss" in logs:
            self._note_step(step, logs, args)
        else:
            return
        self._reporter.step(
            self._curve[step],
            self._curve,
            total_steps=state.max_steps,
            eta_seconds=self._eta_seconds(step, state.max_steps),
        )

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint that was just written, and make up for the evaluation that waited for it."""
        self.mark(self._task.checkpoints / f"checkpoint-{state.global_step}", state.global_step)
        if not self.stopped and self.evaluate is not None and self._lacks_validation(state.global_step):
            self.evaluate()

    def mark(self, checkpoint: Path, step: int) -> None:
        """Complete a checkpoint that transformers has written.

        Raises:
            SupersededError: another execution has taken the job's folder.
        """
        if not self._folder.is_owned():
            raise SupersededError("Another execution of this job trains now.")
        with naming_full_disks(checkpoint):
            if self.best.step is not None:
                save_file(self.best.weights, checkpoint / BEST_NAME)
            write_mark(
                checkpoint,
                Mark(
                    fingerprint=self._task.fingerprint,
                    step=step,
                    points=self.points,
                    best_step=self.best.step,
                    best_loss=self.best.loss if self.best.step is not None else None,
                    evaluations_without_gain=self.best.evaluations_without_gain,
                    train_seconds=self.train_seconds,
                    loss_before=self.loss_before,
                    validation_due=self._lacks_validation(step),
                ),
            )
        remove_others(self._task.job_folder, self._task.checkpoints)
        self._saved, self._marked_step = self._clock(), step

    def _lacks_validation(self, step: int) -> bool:
        point = self._curve.get(step)
        return (
            self._validates
            and validates_after(step, self._total_steps, self._task.chart_points)
            and (point is None or point.validation_loss is None)
        )

    def _note_step(self, step: int, logs: dict[str, Any], args: TrainingArguments) -> None:
        now, tokens = self._clock(), int(logs.get("num_tokens", 0))
        seconds, self._step_ended = now - self._step_ended, now
        new_tokens, self._tokens = tokens - self._tokens, tokens
        sample = self._gpu.sample()
        point = Point(
            step=step,
            epoch=round(logs.get("epoch") or 0, 4),
            training_loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            gradient_norm=logs.get("grad_norm"),
            throughput=round(new_tokens / seconds, 2) if seconds > 0 else None,
            gpu_utilization=sample.utilization,
            gpu_memory_bytes=sample.memory_bytes,
            timestamp=round(time.time(), 3),
        )
        self._curve.note(point)
        self._check_loss(step, logs, args)

    def _check_loss(self, step: int, logs: dict[str, Any], args: TrainingArguments) -> None:
        loss, norm = logs["loss"], logs.get("grad_norm", 0.0)
        self._losses.append(loss)
        # With fp16 an infinite norm is how the loss scale is found; the scaler skips that step.
        broken = not math.isfinite(loss) or not (args.fp16 or math.isfinite(norm))
        if not broken and not has_exploded(self._losses):
            return
        what = "is not a number any more" if broken else f"has exploded to {fmean(self._losses[-_WINDOW:]):.1f}"
        raise LossNotFiniteError(
            f"The loss {what} at step {step}, with learning rate {logs.get('learning_rate', 0):.1e}.",
            "Try a learning rate a third as high, a longer warm-up (warmup_steps) or a larger batch.",
        )

    def _note_validation(self, step: int, loss: float, model: torch.nn.Module) -> None:
        point = self._curve.get(step) or Point(step=step, epoch=0)
        self._curve.note(point.model_copy(update={"validation_loss": loss}))
        self._step_ended = self._clock()  # the pause is not the next step's
        if not loss < self.best.loss:
            self.best.evaluations_without_gain += 1
            return
        self.best = Best(step, loss, trainable_weights(model))

    def _gave_up(self) -> bool:
        patience = self._task.hyperparameters.early_stopping_patience
        return patience is not None and self.best.evaluations_without_gain >= patience

    def _eta_seconds(self, step: int, total_steps: int) -> float | None:
        done = step - self._first_step
        if done <= 0:
            return None
        return round((self._clock() - self._begun) / done * (total_steps - step), 1)


def trainable_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the adapter's weights in main memory."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put weights taken by `trainable_weights` back."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
