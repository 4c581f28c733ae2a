"""Experiment trackers that transformers can report to: TensorBoard, Weights & Biases and MLflow.

Each is used when its environment variable is set. A tracker whose package is missing makes transformers raise after
the model was loaded, and its own check only looks whether the package exists, not whether it can be imported. So
the package of each tracker is imported here first.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from lora_trainer.models.packages import can_import

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Tracker:
    name: str
    """The value of transformers' `report_to`."""
    variable: str
    """The environment variable that turns it on."""
    modules: tuple[str, ...]
    """At least one of them must be importable."""


_TRACKERS = (
    _Tracker("tensorboard", "TENSORBOARD_LOGGING_DIR", ("torch.utils.tensorboard", "tensorboardX")),
    _Tracker("wandb", "WANDB_API_KEY", ("wandb",)),
    _Tracker("mlflow", "MLFLOW_TRACKING_URI", ("mlflow",)),
)


def usable_trackers() -> tuple[list[str], list[str]]:
    """The names of the trackers that are turned on and can work, and a note for the user on each that can't."""
    names, notes = [], []
    for tracker in _TRACKERS:
        if not os.environ.get(tracker.variable):
            continue
        if any(map(can_import, tracker.modules)):
            names.append(tracker.name)
            continue
        notes.append(
            f"{tracker.variable} is set, but {tracker.modules[-1]} can't be imported here, so nothing was reported "
            "to it; install it in the trainer's image."
        )
        log.warning("%s", notes[-1])
    return names, notes
