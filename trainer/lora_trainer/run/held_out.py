"""What the training process leaves for the process that tries the published files: prompts, and rows to measure.

It is text of the dataset, as tokens and as messages. So it stands in the execution's folder, which is removed with the
job's, and never in the artifact.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from lora_contract.evaluation import Measure, SampleMessage
from lora_trainer.run.files import write_atomically

HELD_OUT_NAME = "held_out.json"


class HeldOutPrompt(BaseModel):
    """One prompt that base and tuned model shall answer."""

    messages: list[SampleMessage] = Field(repr=False)
    """The prompt for people: what `Sample.prompt` shows."""
    ids: list[int] = Field(min_length=1, repr=False)
    """The prompt's tokens, as a server renders it with the start of an answer."""
    reference: str | None = Field(default=None, repr=False)
    """The dataset's answer."""


class HeldOutRow(BaseModel):
    """One row to measure a loss on. The label of a token is its id, or -100 where it does not count."""

    ids: list[int] = Field(min_length=2, repr=False)
    labels: list[int] = Field(min_length=2, repr=False)


class HeldOut(BaseModel):
    """Prompts and rows of the held-out conversations; empty lists where nothing is held out."""

    prompts: list[HeldOutPrompt] = Field(default_factory=list)
    rows: list[HeldOutRow] = Field(default_factory=list)
    trained: Measure | None = None
    """What the training process has measured of the tuned model over the same `rows`, on the base as it trained."""

    def write(self, folder: Path) -> None:
        """Write it into `folder`, atomically."""
        write_atomically(folder / HELD_OUT_NAME, self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> HeldOut | None:
        """What is in `folder`; None if there is none, or none that can be read."""
        try:
            return cls.model_validate_json((folder / HELD_OUT_NAME).read_bytes())
        except (OSError, ValidationError):
            return None
