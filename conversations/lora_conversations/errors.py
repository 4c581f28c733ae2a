"""The errors of this package.

DatasetUnusableError   the dataset as a whole can't be used for training
BadValueError          one value breaks a rule; the reader catches it and makes a `LineError` of it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lora_contract.words import joined


class LineError(NamedTuple):
    """Why one example can't be used. `error` is a predicate for `key`, or for the line if there is no key.

    It contains no text of the dataset, only keys, types, lengths and positions: it is logged and stored.
    """

    line: int
    key: str | None
    error: str
    suggestion: str | None = None

    def sentence(self) -> str:
        """Write for the user what is wrong, where, and what to do."""
        where = f"Line {self.line} of the dataset" + (f": {self.key}" if self.key else "")
        return f"{where} {self.error}." + (f" {self.suggestion}" if self.suggestion else "")

    def as_row(self) -> dict[str, Any]:
        """Return the error as an element of the application's column `datasets.validation_errors`."""
        row = {"line": self.line, "error": f"{self.key or 'The line'} {self.error}."}
        return {**row, "suggestion": self.suggestion} if self.suggestion else row


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
