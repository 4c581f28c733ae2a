"""What the child process of an errand writes to the handler: one line of JSON per message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TextIO

from pydantic import BaseModel

from lora_contract.errands import ErrandResult, FitnessCheck, PrefetchProgress
from lora_trainer.errors import DiskFullError, TrainingError
from lora_trainer.run.logs import describe
from lora_trainer.run.volume import FULL_DISK_HINT, is_full_disk

log = logging.getLogger("lora_trainer.errands")

Write = Callable[["Line"], None]
"""Writes a line to the handler."""


class Line(BaseModel):
    """One message. Exactly one of its parts is set."""

    progress: PrefetchProgress | None = None
    beginning: str | None = None
    """The name of the check that begins: the handler kills a child whose check does not end."""
    check: FitnessCheck | None = None
    result: ErrandResult | None = None


def writer(pipe: TextIO) -> Write:
    """A function that writes lines to `pipe`."""

    def write(line: Line) -> None:
        pipe.write(line.model_dump_json(exclude_none=True) + "\n")
        pipe.flush()

    return write


def explain(error: Exception, *, work: str, again: str) -> TrainingError:
    """The error that says what a library's exception means. `work` failed; `again` is what to ask for once more."""
    if isinstance(error, TrainingError):
        return error
    log.error("%s", describe(error))
    if is_full_disk(error):
        return DiskFullError("The network volume is full.", FULL_DISK_HINT)
    return TrainingError(
        f"The {work} failed unexpectedly ({type(error).__name__}).",
        f"Ask for the same{again} again: finished files are kept. The container's log says where it failed.",
    )
