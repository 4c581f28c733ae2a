"""An answer on its way back to the client."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """Status and JSON text of an answer."""

    status: int
    body: bytes
