"""What the child process of an errand writes to the handler: one line of JSON per message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from pydantic import BaseModel

from lora_contract.errands import ErrandResult, FitnessCheck, PrefetchProgress

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
