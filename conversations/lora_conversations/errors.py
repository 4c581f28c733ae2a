"""The errors of this package.

DatasetUnusableError   the dataset as a whole can't be used for training
BadValueError          one value breaks a rule; the reader catches it and makes a `LineError` of it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.words import joined

if TYPE_CHECKING:
    from lora_conversations.examples import LineError


class DatasetUnusableError(Exception):
    """The dataset as a whole can't be used for training. `errors` are the first bad lines, if these are the reason."""

    def __init__(self, message: str, hint: str | None = None, errors: Sequence[LineError] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.errors = tuple(errors)

    def sentence(self) -> str:
        """Return message and hint as one text for the user."""
        return joined(self.message, self.hint)


class BadValueError(ValueError):
    """One value breaks a rule. The reader, which knows its line, catches it and makes a `LineError` of it.

    `key` is the path of the value; `error` is a predicate for it, such as “is missing”.
    """

    def __init__(self, key: str | None, error: str, suggestion: str | None = None) -> None:
        super().__init__(error)
        self.key = key
        self.error = error
        self.suggestion = suggestion
