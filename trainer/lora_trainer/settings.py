"""What the trainer's image can be told through `LORA_TRAINER_…` variables. All have defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from lora_contract.names import unread_variables
from lora_trainer.errors import TrainingError

_OWN = re.compile(r"LORA[_-]?TRAIN", re.IGNORECASE)


class Settings(BaseSettings):
    """Read from the environment once per job."""

    model_config = SettingsConfigDict(env_prefix="LORA_TRAINER_", extra="ignore", frozen=True)

    child: str = "lora_trainer.recipe.train"
    """Module that is run in the child process and does the training."""
    volume: Path | None = None
    """Where job folders and models are kept; None: `/runpod-volume`, then `/workspace`, then the home."""
    heartbeat_seconds: float = Field(default=15, gt=0)
    progress_seconds: float = Field(default=2, ge=0)
    """Least time between two progress posts."""
    settle_seconds: float = Field(default=1, ge=0)
    """Between the last progress post and the result, so that no update overtakes the end."""
    grace_seconds: float = Field(default=60, ge=0)
    """For the child to save a checkpoint after SIGTERM, before SIGKILL."""
    channel_patience_seconds: float = Field(default=180, gt=0)
    """How long an RPC is retried before the run gives up."""
    grant_poll_seconds: float = Field(default=3, gt=0)
    checkpoint_minutes: float = Field(default=10, gt=0)
    trust_remote_code: list[str] = Field(default_factory=list)
    """Names of base models whose own code may run; a JSON list."""
    keep_days: float = Field(default=14, gt=0)
    """Job folders untouched for longer are removed from the volume."""


def unread_settings() -> list[str]:
    """Sentences on variables of this container that are named like the trainer's and are none; no value is shown."""
    known = {f"LORA_TRAINER_{name}".upper() for name in Settings.model_fields}
    return unread_variables(os.environ, _OWN, known, whose="the trainer", otherwise="docs/training.md lists them all")


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
        raise TrainingError(f"The endpoint's variable {name} is wrong: {problem['msg']}.", "Mend it.") from None
