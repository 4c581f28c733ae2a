"""The training process reports its progress to the handler: one JSON line per update, on a pipe."""

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
"""Least time between two lines about steps. The handler sends less often; this only limits the traffic on the pipe."""


def training_progress(step: int, total_steps: int) -> float:
    """Percent of the whole run that is done after optimizer step `step` (counted from 1): 0 to 100."""
    begin, end = STAGE_PROGRESS[Stage.TRAINING], STAGE_PROGRESS[Stage.SAVING]
    return round(begin + (end - begin) * min(step / max(total_steps, 1), 1), 1)


class ProgressWriter:
    """Writes `Progress` as JSON lines to `pipe`. Updates are cumulative, so the handler may skip any but the latest."""

    def __init__(self, pipe: TextIO, task: Task, gpu: GpuMonitor) -> None:
        self._pipe = pipe
        self._task = task
        self._gpu = gpu
        self._last_step_seconds = -_INTERVAL_SECONDS

    def begin_stage(self, stage: Stage, message: str | None = None) -> None:
        """Report that a stage begins. `message` is a sentence for the user."""
        log.info("%s%s", stage.value, f": {message}" if message else "")
        self._write(Progress(**self._common(stage), progress=STAGE_PROGRESS[stage], message=message))

    def end_step(self, point: Point, curve: Curve, *, total_steps: int, eta_seconds: float | None) -> None:
        """Report that the step of `point` ended, with the chart's points so far.

        The first and the last step are always reported, those between at most once in half a second.
        """
        now = time.monotonic()
        is_first_or_last = point.step in {1, total_steps}
        if not is_first_or_last and now - self._last_step_seconds < _INTERVAL_SECONDS:
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
                "reward_margin",
                "reward_accuracy",
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
        self._pipe.write(progress.model_dump_json(exclude_none=True) + "\n")
        self._pipe.flush()
