"""What a function of the database is to its callers: a name, the type of its answer, and arguments for a test call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Function(Generic[T]):
    """A function of the schema `public`. `probe` are the arguments of its test call, as they stand in a URL's query."""

    name: str
    answer: TypeAdapter[T]
    probe: Mapping[str, str]


def schema_marker(version: int) -> str:
    """Return the name of the function that a database has for as long as it serves workers of this schema version.

    The function takes a row of `datasets`. So a query for `datasets.<marker>` asks the database itself whether the
    function exists, without PostgREST's cache: PostgREST passes names of columns on without a check, and Postgres reads
    this one as a call of the function for each row.
    """
    return f"worker_schema_{version}"
