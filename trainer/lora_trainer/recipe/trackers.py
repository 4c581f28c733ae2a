"""Transformers' own reporters: TensorBoard, Weights & Biases, MLflow, each when its variable is set.

Asking transformers for one whose package is missing raises, after the model was loaded; and its checks
only look for the package, which may be there without importing. So each is tried first.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from lora_trainer.models.packages import imports

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Reporter:
    name: str
    """As transformers calls it."""
    variable: str
    """Asks for it."""
    modules: tuple[str, ...]
    """One of them must import."""


_REPORTERS = (
    _Reporter("tensorboard", "TENSORBOARD_LOGGING_DIR", ("torch.utils.tensorboard", "tensorboardX")),
    _Reporter("wandb", "WANDB_API_KEY", ("wandb",)),
    _Reporter("mlflow", "MLFLOW_TRACKING_URI", ("mlflow",)),
)


def usable_reporters() -> tuple[list[str], list[str]]:
    """The reporters that were asked for and can work, and a note for each that can't."""
    names, notes = [], []
    for reporter in _REPORTERS:
        if not os.environ.get(reporter.variable):
            continue
        if any(map(imports, reporter.modules)):
            names.append(reporter.name)
            continue
        notes.append(
            f"{reporter.variable} is set, but {reporter.modules[-1]} can't be imported here, so nothing was reported "
            "to it; install it in the trainer's image."
        )
        log.warning("%s", notes[-1])
    return names, notes
