"""The settings of the trainer's container: environment variables `LORA_TRAINER_…`, each with a default."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from lora_contract.names import unread_variables
from lora_contract.words import fault_words
from lora_trainer.errors import TrainingError

_OWN = re.compile(r"LORA[_-]?TRAIN", re.IGNORECASE)


class Settings(BaseSettings):
    """Read from the environment once per job."""

    model_config = SettingsConfigDict(
        env_prefix="LORA_TRAINER_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    child: str = "lora_trainer.recipe.train"
    """The module that the child process runs; it does the training."""
    proof: str = "lora_trainer.proof.process"
    """The module that the second child process runs; it tries the published files on the base, as a server would."""
    volume: Path | None = None
    """Folder of job folders and models. None: the first that exists of `/runpod-volume`, `/workspace` and the home."""
    models_volume: Path | None = None
    """Folder of base models and their quantised copies. None: the volume. Where the cloud copies all files of the
    volume elsewhere, as SageMaker does with checkpoints, models belong on another disk."""
    cloud_restarts: bool = False
    """Whether the cloud starts this container again after it has taken its machine away, as SageMaker does with spot
    instances. An interruption is then not reported: the run goes on when the container is back."""
    serving_folder: Path | None = None
    """Folder from which vLLM serves adapters by name. None: `lora-adapters` on the network volume, if one is
    mounted."""
    heartbeat_seconds: float = Field(default=15, gt=0)
    """Time between two check-ins with the database."""
    progress_seconds: float = Field(default=2, ge=0)
    """Least time between two progress updates to RunPod."""
    settle_seconds: float = Field(default=1, ge=0)
    """Pause between the last progress update and the result: an update that arrives later would replace the result."""
    grace_seconds: float = Field(default=60, ge=0)
    """How long the child may take to save a checkpoint after SIGTERM; then it gets SIGKILL."""
    channel_patience_seconds: float = Field(default=180, gt=0)
    """How long a call of a database function is retried before the run gives up."""
    grant_poll_seconds: float = Field(default=3, gt=0)
    """Time between two questions whether the worker has granted the upload."""
    checkpoint_minutes: float = Field(default=10, gt=0)
    """Time between two checkpoints."""
    compile: Literal["off", "auto", "on"] = "off"
    """Whether torch.compile compiles a model's layers on a GPU; `auto` only where a training surely takes two hours,
    since compiling takes minutes. Mixtures of experts are never compiled."""
    trust_remote_code: list[str] = Field(default_factory=list)
    """Names of base models that may run code of their own; in the variable, a JSON list."""
    fitness_at_start: bool = True
    """Whether a container checks its machine before it takes a job, and ends when a check fails."""
    needs_gpu: bool = True
    """Whether a machine without a GPU is unfit. False for trials on a CPU, where the checks run on the CPU."""
    check_seconds: float = Field(default=120, gt=0)
    """How long one check of the machine may take. The first one on the GPU also loads torch."""
    least_free_gb: float = Field(default=2, ge=0)
    """Gigabytes (10⁹ bytes) that must be free on the volume and the container's disk."""
    quantised_cache_gb: float = Field(default=50, ge=0, le=10_000)
    """Gigabytes (10⁹ bytes) that quantised copies of base models may take on the volume. A job that finds one there
    loads a quarter of the bytes; without room for it beside 10 GB none is written. 0: none are written or read."""
    keep_days: float = Field(default=14, gt=0)
    """Job folders that nobody has written to for so many days are removed from the volume."""


def unread_settings() -> list[str]:
    """A sentence for each variable that looks like a setting of the trainer but is none. Values are not shown."""
    known = {f"LORA_TRAINER_{name}".upper() for name in Settings.model_fields}
    return unread_variables(os.environ, _OWN, known, whose="the trainer", otherwise="docs/settings.md lists them all")


def load_settings() -> Settings:
    """The settings of this container.

    Raises:
        TrainingError: names the variable that is wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = f"LORA_TRAINER_{problem['loc'][0]}".upper()
        raise TrainingError(
            f"The endpoint's variable {name} is wrong: {fault_words(problem['type'], problem['msg'])}.",
            "Correct it in the endpoint's environment.",
        ) from None
