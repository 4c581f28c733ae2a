"""What happens around each optimizer step: points of the curve, evaluations, checkpoints, and reasons to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from lora_contract.crash_points import crash_point
from lora_contract.curve import Curve, validation_points
from lora_contract.protocol import Pace, Point
from lora_trainer.errors import LossNotFiniteError, SupersededError
from lora_trainer.models.quantization import NF4, Quantization
from lora_trainer.recipe.checkpoints import (
    BEST_ADAPTER_NAME,
    Checkpoint,
    CheckpointState,
    remove_replaced_checkpoints,
    write_state,
)
from lora_trainer.recipe.random_states import RandomStates
from lora_trainer.recipe.stopping import StopSwitch
from lora_trainer.run.gpu import GpuMonitor
from lora_trainer.run.progress_pipe import ProgressWriter
from lora_trainer.run.task import Task
from lora_trainer.run.volume import JobFolder, naming_full_disks

_REWARDS = ("reward_margin", "reward_accuracy")
_EXPLODED_STEPS = 5
"""How many steps in a row must have a loss that is far too high."""
_EXPLODED_FACTOR = 3.0
"""A loss is far too high when it is more than this times the first loss, plus 1."""
_EVALUATIONS = 10
"""About how often a training evaluates the held-out examples."""


def validates_after(step: int, total_steps: int, chart_points: int) -> bool:
    """Whether the held-out examples are evaluated after `step`: about ten times in a training, and after its end.

    `chart_points` is the most points that the chart takes; evaluations leave room in it for the training's losses.
    """
    evaluations = min(_EVALUATIONS, validation_points(chart_points))
    return step == total_steps or step % math.ceil(total_steps / evaluations) == 0


def has_exploded(losses: list[float]) -> bool:
    """Whether the last five losses are all more than three times the first one, plus 1: more steps won't mend it."""
    last = losses[-_EXPLODED_STEPS:]
    return len(losses) > _EXPLODED_STEPS and min(last) > _EXPLODED_FACTOR * losses[0] + 1


@dataclass
class BestAdapter:
    """The adapter with the lowest validation loss so far; without a step before the first evaluation."""

    step: int | None = None
    loss: float = math.inf
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """The trained weights by parameter name, in main memory."""
    evaluations_without_gain: int = 0
    """How many evaluations since then found no lower loss."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Of preference methods: `reward_margin` and `reward_accuracy` of what is held out."""


class FollowedTrainer(Protocol):
    """What a callback needs of the trainer that it follows."""

    def add_callback(self, callback: Any) -> None:
        """Have the trainer call the methods of `callback`."""

    def evaluate(self) -> object:
        """Evaluate what is held out; the losses come through `on_log`."""

    def save_beside(self, checkpoint: Path) -> None:
        """Save into a checkpoint's folder what transformers does not save and the callback does not know."""


class EvaluationInterruptedError(Exception):
    """A stop was requested while the held-out examples were evaluated. Caught where the evaluation began."""


class RunCallback(TrainerCallback):
    """Follows one training: `points` is its whole curve, and `best` the adapter with the lowest validation loss.

    transformers calls the `on_…` methods; `control` carries decisions back to it. `follow` must be called before
    the training begins. `writes`: whether this process writes checkpoints; of several that train together one does.
    """

    def __init__(
        self,
        task: Task,
        progress: ProgressWriter,
        stop: StopSwitch,
        gpu: GpuMonitor,
        *,
        validates: bool,
        quantization: Quantization = NF4,
        writes: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task = task
        self._folder = JobFolder(task.job_folder, task.execution_id)
        self._progress = progress
        self._stop = stop
        self._gpu = gpu
        self._validates = validates
        self._quantization = quantization
        self._writes = writes
        self._clock = clock
        self._curve = Curve(limit=task.chart_points)
        self._losses: list[float] = []
        self._tokens = 0
        self._seconds_before = 0.0
        self._begun_at = self._saved_at = self._step_ended_at = clock()
        self._first_step = self._total_steps = 0
        self.saved_step: int | None = None
        """The step of the newest complete checkpoint that this process has written."""
        self._validation_due = False
        self.evaluate: Callable[[], object] | None = None
        """The trainer's `evaluate`, for evaluations that transformers' loop does not start. `follow` sets it."""
        self._save_beside: Callable[[Path], object] = lambda _: None
        self.last_states: RandomStates | None = None
        """The random states after the last whole step of this process; None before its first."""
        self.best = BestAdapter()
        self.loss_before: float | None = None
        """The validation loss of the base model, measured before the first step."""
        self.stopped = False
        """Whether the training ended before its last step because a stop was requested."""
        self.stopped_early_at: int | None = None
        """The step after which early stopping ended the training; None if it did not."""

    def follow(self, trainer: FollowedTrainer) -> None:
        """Have `trainer` call this object, and take its `evaluate` and `save_beside`."""
        trainer.add_callback(self)
        self.evaluate, self._save_beside = trainer.evaluate, trainer.save_beside

    @property
    def points(self) -> list[Point]:
        """The curve so far, one point per step, in order."""
        return self._curve.points

    @property
    def train_seconds(self) -> float:
        """Seconds of training, with those before the checkpoint from which it resumed."""
        return self._seconds_before + self._clock() - self._begun_at

    @property
    def pace(self) -> Pace:
        """The tokens, seconds and steps of this execution's training so far."""
        steps = self._curve.points[-1].step - self._first_step if self._curve.points else 0
        seconds = self._step_ended_at - self._begun_at
        return Pace(tokens=self._tokens, seconds=round(seconds, 3), steps=max(steps, 0))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the curve, the best adapter and the counters of the checkpoint from which training resumes."""
        folder, state = checkpoint
        self._curve = Curve(state.points, limit=self._task.chart_points)
        self._losses = [point.training_loss for point in state.points if point.training_loss is not None]
        self._seconds_before = state.train_seconds
        self.loss_before = state.loss_before
        self._validation_due = state.validation_due
        if state.best_step is not None and state.best_loss is not None:
            weights = load_file(folder / BEST_ADAPTER_NAME)
            self.best = BestAdapter(
                state.best_step, state.best_loss, weights, state.evaluations_without_gain, state.best_rewards
            )

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clocks. Evaluate the base model, or repeat an evaluation that a stop interrupted."""
        self._begun_at = self._saved_at = self._step_ended_at = self._clock()
        self._first_step, self._total_steps = state.global_step, state.max_steps
        first = self._validates and state.global_step == 0
        if (first or self._validation_due) and self.evaluate is not None:
            self.evaluate()
            self._step_ended_at = self._clock()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what follows this step: a checkpoint, an evaluation, or the end of the training."""
        crash_point("trainer.train.step")
        self.last_states = RandomStates.now()
        if self._stop.requested:
            self.stopped = state.global_step < state.max_steps
            control.should_training_stop = True
        due = self._writes and self._clock() - self._saved_at >= self._task.checkpoint_minutes * 60
        control.should_save = (due or self.stopped) and state.global_step < state.max_steps
        # An evaluation takes minutes, and a stop may interrupt it. So a checkpoint that is due is saved first;
        # `on_save` then starts the evaluation.
        control.should_evaluate = not control.should_save and self._lacks_validation(state.global_step)

    @override
    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Interrupt an evaluation when a stop is requested. The execution that resumes repeats it.

        Raises:
            EvaluationInterruptedError: `StepTrainer.evaluate` catches it.
        """
        # After the last step no execution could resume: this one finishes the evaluation and saves the adapter.
        if not self._stop.requested or state.global_step >= state.max_steps:
            return
        self.stopped = control.should_training_stop = True
        control.should_evaluate = False
        control.should_save = self.saved_step != state.global_step
        raise EvaluationInterruptedError

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a point to the curve, or a validation loss to the point of its step. Every step is logged.

        Raises:
            LossNotFiniteError: the loss or the gradient is not finite, or the loss has exploded.
        """
        step, logs = state.global_step, logs or {}
        if "eval_loss" in logs and step == 0:
            self.loss_before = logs["eval_loss"]
            return
        if "eval_loss" in logs:
            self._note_validation(step, logs, kwargs["model"])
            if self._patience_is_exhausted():
                self.stopped_early_at = step
                control.should_training_stop = True
        elif "loss" in logs:
            self._note_step(step, logs, args)
        else:
            return
        self._progress.end_step(
            self._curve[step],
            self._curve,
            total_steps=state.max_steps,
            eta_seconds=self._eta_seconds(step, state.max_steps),
        )

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint that transformers has just written, then start the evaluation that is due."""
        self.complete_checkpoint(self._task.checkpoints / f"checkpoint-{state.global_step}", state.global_step)
        if not self.stopped and self.evaluate is not None and self._lacks_validation(state.global_step):
            self.evaluate()

    def complete_checkpoint(self, folder: Path, step: int) -> None:
        """Add to a checkpoint of transformers what it does not save; only now may an execution resume from it.

        Raises:
            SupersededError: another execution has taken the job's folder.
            DiskFullError: there is no room for the files.
        """
        if not self._writes:
            return
        if not self._folder.is_owned():
            raise SupersededError("Another execution of this job trains now.")
        with naming_full_disks(folder):
            if self.best.step is not None:
                save_file(self.best.weights, folder / BEST_ADAPTER_NAME)
            self._save_beside(folder)
            write_state(
                folder,
                CheckpointState(
                    fingerprint=self._task.fingerprint,
                    step=step,
                    quantization=self._quantization,
                    points=self.points,
                    best_step=self.best.step,
                    best_loss=self.best.loss if self.best.step is not None else None,
                    best_rewards=self.best.rewards,
                    evaluations_without_gain=self.best.evaluations_without_gain,
                    train_seconds=self.train_seconds,
                    loss_before=self.loss_before,
                    validation_due=self._lacks_validation(step),
                ),
            )
        remove_replaced_checkpoints(
            self._task.job_folder, self._task.checkpoints, self._task.fingerprint, self._quantization
        )
        self._saved_at, self.saved_step = self._clock(), step

    def _lacks_validation(self, step: int) -> bool:
        point = self._curve.get(step)
        return (
            self._validates
            and validates_after(step, self._total_steps, self._task.chart_points)
            and (point is None or point.validation_loss is None)
        )

    def _note_step(self, step: int, logs: dict[str, Any], args: TrainingArguments) -> None:
        # `num_tokens` counts the tokens of all steps so far.
        now, tokens = self._clock(), int(logs.get("num_tokens", 0))
        seconds, self._step_ended_at = now - self._step_ended_at, now
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
            **{name: logs.get(name) for name in _REWARDS},
            timestamp=round(time.time(), 3),
        )
        self._curve.note(point)
        self._check_loss(step, logs, args)

    def _check_loss(self, step: int, logs: dict[str, Any], args: TrainingArguments) -> None:
        loss, norm = logs["loss"], logs.get("grad_norm", 0.0)
        self._losses.append(loss)
        # With fp16 an infinite gradient norm is normal: it tells the loss scaler to skip the step and lower its scale.
        broken = not math.isfinite(loss) or not (args.fp16 or math.isfinite(norm))
        if not broken and not has_exploded(self._losses):
            return
        what = "is not a number any more" if broken else f"has exploded to {fmean(self._losses[-_EXPLODED_STEPS:]):.1f}"
        raise LossNotFiniteError(
            f"The loss {what} at step {step}, with learning rate {logs.get('learning_rate', 0):.1e}.",
            "Try a learning rate a third as high, a longer warm-up (warmup_steps) or a larger batch.",
        )

    def _note_validation(self, step: int, logs: dict[str, Any], model: torch.nn.Module) -> None:
        loss = logs["eval_loss"]
        point = self._curve.get(step) or Point(step=step, epoch=0)
        self._curve.note(point.model_copy(update={"validation_loss": loss}))
        self._step_ended_at = self._clock()  # the evaluation's time is not part of the next step
        if not loss < self.best.loss:
            self.best.evaluations_without_gain += 1
            return
        rewards = {name: logs[f"eval_{name}"] for name in _REWARDS if f"eval_{name}" in logs}
        self.best = BestAdapter(step, loss, trainable_weights(model), rewards=rewards)

    def _patience_is_exhausted(self) -> bool:
        patience = self._task.hyperparameters.early_stopping_patience
        return patience is not None and self.best.evaluations_without_gain >= patience

    def _eta_seconds(self, step: int, total_steps: int) -> float | None:
        done = step - self._first_step
        if done <= 0:
            return None
        return round((self._clock() - self._begun_at) / done * (total_steps - step), 1)


def trainable_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights that train, by parameter name, in main memory."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put weights from `trainable_weights` back into the model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
