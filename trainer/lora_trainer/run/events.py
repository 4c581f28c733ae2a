"""The child's progress, one JSON line an update, on the pipe to the handler."""

from __future__ import annotations

import logging
import time
from typing import TextIO

from lora_contract.curve import Curve
from lora_contract.protocol import STAGE_PROGRESS, Point, Progress, Stage
from lora_trainer.run.gpu import GpuMonitor
from lora_trainer.run.task import Task

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 0.5
"""The handler posts more rarely still; this only bounds what goes through the pipe."""


def training_progress(step: int, total_steps: int) -> float:
    """Percent of the whole run that is done after `step`."""
    begin, end = STAGE_PROGRESS[Stage.TRAINING], STAGE_PROGRESS[Stage.SAVING]
    return round(begin + (end - begin) * min(step / max(total_steps, 1), 1), 1)


class Reporter:
    """Writes `Progress` lines. Every line holds all chart points so far."""

    def __init__(self, events: TextIO, task: Task, gpu: GpuMonitor) -> None:
        self._events = events
        self._task = task
        self._gpu = gpu
        self._last_step_seconds = -_INTERVAL_SECONDS

    def stage(self, stage: Stage, message: str | None = None) -> None:
        """Say that a stage begins, with a sentence for the user."""
        log.info("%s%s", stage.value, f": {message}" if message else "")
        self._write(Progress(**self._common(stage), progress=STAGE_PROGRESS[stage], message=message))

    def step(self, point: Point, curve: Curve, *, total_steps: int, eta_seconds: float | None) -> None:
        """Say that a step ended; the first, the last and one in every half second are told."""
        now = time.monotonic()
        ends = point.step in {1, total_steps}
        if not ends and now - self._last_step_seconds < _INTERVAL_SECONDS:
            return
        self._last_step_seconds = now
        log.info("step %d of %d: loss %s", point.step, total_steps, point.training_loss)
        metrics = point.model_dump(
            include={
                "training_loss",
                "validation_loss",
                "learning_rate",
                "gradient_norm",
                "throughput",
                "gpu_utilization",
            },
            exclude_none=True,
        )
        self._write(
            Progress(
                **self._common(Stage.TRAINING),
                progress=training_progress(point.step, total_steps),
                current_step=point.step,
                current_epoch=point.epoch,
                total_steps=total_steps,
                eta_seconds=eta_seconds,
                metrics=metrics,
                points=curve.chart(total_steps),
            )
        )

    def _common(self, stage: Stage) -> dict[str, object]:
        return {
            "run_id": self._task.run_id,
            "execution_id": self._task.execution_id,
            "stage": stage,
            "gpu_type": self._gpu.name,
            "gpu_count": self._gpu.count,
        }

    def _write(self, progress: Progress) -> None:
        self._events.write(progress.model_dump_json(exclude_none=True) + "\n")
        self._events.flush()
