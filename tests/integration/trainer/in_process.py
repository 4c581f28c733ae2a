"""Trains in this process, which spares starting Python and importing torch for each training."""

from __future__ import annotations

from typing import Any

from lora_trainer.run.proof_task import Proof, ProofTask
from lora_trainer.run.task import Outcome, Task


class Progress:
    """Stands for the pipe to the handler: asks for a stop after a given step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.requested = False
        self._stop_after = stop_after

    def begin_stage(self, *_: Any) -> None:
        pass

    def end_step(self, point: Any, *_: Any, **__: Any) -> None:
        self.requested = point.step == self._stop_after

    def training_begins(self) -> None:
        pass


def proven(task: Task, **changes: Any) -> Proof:
    """What trying the files finds that a training of the task has left."""
    from lora_trainer.proof.process import attempt

    return attempt(
        ProofTask(
            execution_id=task.execution_id,
            job_folder=task.job_folder,
            folder=task.folder,
            volume=task.volume,
            hyperparameters=task.hyperparameters,
            **{"archive_name": task.archive_name, **changes},
        )
    )


def trained(task: Task, *, stop_after: int | None = None) -> Outcome:
    """The outcome of a training, which is asked to stop after a step, or never."""
    from lora_trainer.models.quantised_cache import QuantisedCache
    from lora_trainer.recipe.train import train
    from lora_trainer.run.gpu import GpuMonitor

    progress: Any = Progress(stop_after)
    with QuantisedCache(task.volume, 0) as cache:
        return train(task, progress, progress, GpuMonitor(wanted=False), cache)
