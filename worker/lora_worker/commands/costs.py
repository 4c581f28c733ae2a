"""What the commands about money read and print: costs, budgets, the guide to cards."""

from __future__ import annotations

from typing import Any, get_args
from uuid import UUID

from rich.console import Console
from rich.table import Table

from lora_worker.commands.references import find_user, moment
from lora_worker.database.money_rows import BudgetState, CostKey, Costs
from lora_worker.errors import ArgumentError
from lora_worker.money.guide import Needs
from lora_worker.services import Services

_CARDS_SHOWN = 3


async def read_costs(services: Services, *, since: str, until: str, by: str) -> list[Costs]:
    """Read what trainings have cost.

    Raises:
        ArgumentError: a time or the key is none.
        ServiceError: the database did not answer.
    """
    keys: tuple[CostKey, ...] = get_args(CostKey)
    key = next((known for known in keys if known == by), None)
    if key is None:
        raise ArgumentError(f"--by: {by[:40]!r} is none of {', '.join(keys)}")
    now = services.now()
    begin, end = moment(since, now), moment(until, now) if until else now
    if begin >= end:
        raise ArgumentError("--since is not before --until")
    return await services.queue.training_costs(begin, end, key)


def print_costs(found: list[Costs], console: Console) -> None:
    """Print a table of costs, with their sum."""
    if not found:
        console.print("no training was billed in this time")
        return
    table = Table("", "jobs", "runs", "GPU hours", "USD", box=None)
    for row in found:
        table.add_row(
            row["key"], str(row["jobs"]), str(row["runs"]), f"{row['gpu_seconds'] / 3600:.2f}", f"{row['usd']:.2f}"
        )
    # A job that was billed on two days counts on both, so the jobs are not added up.
    hours, usd = sum(row["gpu_seconds"] for row in found) / 3600, sum(row["usd"] for row in found)
    table.add_row("together", "", str(sum(row["runs"] for row in found)), f"{hours:.2f}", f"{usd:.2f}")
    console.print(table)


async def change_budget(services: Services, user: str, usd_per_day: float | None) -> dict[str, Any]:
    """Set the budget of a user, or of all trainings together with an empty name; None: no limit.

    Raises:
        ArgumentError: there is no such user.
        ServiceError: the database did not answer.
    """
    user_id = await _known_user(services, user)
    changed = await services.queue.set_training_budget(user_id, usd_per_day)
    return {"user_id": str(user_id) if user_id else None, "usd_per_day": usd_per_day, "changed": changed}


async def drop_budget(services: Services, user: str) -> dict[str, Any]:
    """Remove such a budget, also of an account that is gone.

    Raises:
        ArgumentError: no user has this mail address.
        ServiceError: the database did not answer.
    """
    user_id = await find_user(services.queue, user) if user else None
    changed = await services.queue.remove_training_budget(user_id)
    return {"user_id": str(user_id) if user_id else None, "changed": changed}


async def _known_user(services: Services, user: str) -> UUID | None:
    if not user:
        return None
    found = await services.queue.find_training_user(user)
    if found is None:
        raise ArgumentError(f"no user has the id or mail address {user[:100]!r}")
    return found["user_id"]


def print_budgets(state: BudgetState, console: Console) -> None:
    """Print the budgets and what is used of them today."""
    table = Table("", "budget", "spent today", "for live runs", box=None)
    day = state["day"]
    table.add_row("all trainings", _usd(day["usd_per_day"]), _usd(day["spent"]), _usd(day["live"]))
    table.add_row("each user", _usd(state["each_user"]), "", "")
    for row in state["budgets"]:
        own = "" if row["set_at"] is None else " (own)"
        table.add_row(row["user_id"], _usd(row["usd_per_day"]) + own, _usd(row["spent"]), _usd(row["live"]))
    console.print(table)


def _usd(amount: float | None) -> str:
    return "no limit" if amount is None else f"${amount:.2f}"


def print_guide(found: list[Needs], console: Console) -> None:
    """Print for each base model its memory and its cheapest cards."""
    table = Table(
        "base model", "needs", "cards, the cheapest training first (USD an hour; USD for a million tokens)", box=None
    )
    for needs in found:
        shown = needs.cards if len(found) == 1 else needs.cards[:_CARDS_SHOWN]
        for number, card in enumerate(shown):
            price = card.usd_per_million_tokens
            first = number == 0
            table.add_row(
                needs.base_model if first else "",
                f"{needs.needed_gb:g} GB" if first else "",
                f"{card.gpu}, {card.memory_gb} GB: {card.price_per_hour:.2f}; {price.low:.2f} to {price.high:.2f}",
            )
    console.print(table)
    console.print(
        "A training fits the card that has the memory; a larger card makes it faster. "
        "`lora-worker estimate` computes one with its loading and uploading."
    )
