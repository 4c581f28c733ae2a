"""Proof that an adapter is applied: what a fresh process found when it loaded the base and the published files.

An adapter whose tensors have names that no module takes is loaded without an error and changes nothing. So the trainer
loads the files that it publishes as a server would, and says here what came of it. The worker settles no manifest
without it. This module imports nothing heavier than pydantic, because the worker must run in 256 MB of memory.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lora_contract.bounds import MOST_STEPS, FiniteFloat

Precision = Literal["bf16", "fp16", "fp32", "nf4"]
"""How a base model is held in memory."""

_Tally = Annotated[int, Field(ge=0, le=MOST_STEPS)]


class Application(BaseModel):
    """What the proof found. Losses are in nats per token, over the held-out rows."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    adapter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the `adapter_model.safetensors` that was loaded."""
    modules: _Tally
    """How many modules of the base took the adapter. An expert's projection counts as one."""
    tensors: _Tally
    """How many tensors the file holds; all of them are in the modules."""
    prompts: _Tally
    """How many prompts were answered, greedily, with the adapter and without."""
    differing: _Tally
    """How many of them were answered otherwise with the adapter."""
    precision: Precision
    """How the base was held while it answered."""
    base_unchanged: bool
    """Whether the base alone answered the same after the adapter was loaded and switched off, with the same weights."""
    trained_loss: FiniteFloat = None
    """The held-out loss of the adapter on the base as it was held while training; None where nothing was held out."""
    served_loss: FiniteFloat = None
    """The held-out loss of the adapter on the base as most servers load it; None where it was not measured."""
    served_precision: Precision | None = None
    """How the base was held for `served_loss`."""

    @model_validator(mode="after")
    def _check_agreement(self) -> Application:
        """Refuse a proof that can't be true: no more answers differ than were given."""
        if self.differing > self.prompts:
            raise ValueError("more answers differ than were given")
        return self

    def gap_percent(self) -> float | None:
        """By how many percent the loss as served is above that as trained; None where one of them is not known."""
        if self.trained_loss is None or self.served_loss is None or self.trained_loss <= 0:
            return None
        return 100 * (self.served_loss / self.trained_loss - 1)
