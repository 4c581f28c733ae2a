"""What can be wrong with a dataset.

DatasetUnusableError   the dataset as a whole can't be trained on
BadValueError          a value breaks a rule; becomes a `LineError` where its line is known, and never leaves the reader
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.words import joined

if TYPE_CHECKING:
    from lora_conversations.examples import LineError


class DatasetUnusableError(Exception):
    """The dataset as a whole can't be trained on. `errors` are the first bad lines, if lines are to blame."""

    def __init__(self, message: str, hint: str | None = None, errors: Sequence[LineError] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.errors = tuple(errors)

    def sentence(self) -> str:
        """Message and hint as one text for the user."""
        return joined(self.message, self.hint)


class BadValueError(ValueError):
    """A value breaks a rule; becomes a `LineError` where its line is known. Never leaves the reader."""

    def __init__(self, key: str | None, error: str, suggestion: str | None = None) -> None:
        super().__init__(error)
        self.key = key
        self.error = error
        self.suggestion = suggestion
