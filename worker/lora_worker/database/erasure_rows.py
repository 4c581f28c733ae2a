"""What the database answers about a user who is to be erased."""

from __future__ import annotations

from typing_extensions import TypedDict


class UserState(TypedDict):
    """Answer of `training_user_state`: how many rows there are."""

    datasets: int
    jobs: int
    artifacts: int
    notifications: int
    costs: int
    runs: int
    busy: int
    """Live runs, and those with a launch that may not have ended."""


class UserObject(TypedDict):
    """An object of a user; an element of `training_user_objects`."""

    bucket: str
    name: str


class Erased(TypedDict):
    """Answer of `erase_training_user`."""

    erased: bool
    reason: str | None
    rows: dict[str, int]
    """How many rows of each table were deleted."""
