"""An answer that the proxy may change before it goes to the client."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """Status and JSON text of an answer."""

    status: int
    body: bytes
