"""What the database answers about money: costs, failures and budgets."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

CostKey = Literal["day", "user", "model"]
"""By what costs are added up."""


class Costs(TypedDict):
    """What trainings of one day, user or base model have cost; an element of `training_costs`."""

    key: str
    jobs: int
    runs: int
    gpu_seconds: float
    usd: float


class Failures(TypedDict):
    """How many jobs failed for one reason; an element of `training_failures`."""

    error_code: str
    jobs: int
    users: int
    last_at: str
    message: str | None


class Spending(TypedDict):
    """A budget of a UTC day in USD (None: no limit), and what is used of it today."""

    usd_per_day: float | None
    spent: float
    """What was billed today."""
    live: float
    """What the live runs may cost."""


class UserSpending(Spending):
    """The same of one user."""

    user_id: str
    set_at: str | None
    """When the user got a budget of their own; None: the setting counts."""


class BudgetState(TypedDict):
    """Answer of `training_budget_state`."""

    day: Spending
    """Of everybody together."""
    each_user: float | None
    """The budget of a user without one of their own; None: no limit."""
    budgets: list[UserSpending]
    """Users with a budget of their own, and those who have spent something today."""
