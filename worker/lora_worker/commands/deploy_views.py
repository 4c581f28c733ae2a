"""Plans and their results as JSON and as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lora_worker.commands.terminal import printable
from lora_worker.deployment.planning import Action, ActionKind, Plan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from lora_worker.deployment.catalog import PoolOffer

_SIGNS = {
    ActionKind.CREATE: ("+", "green"),
    ActionKind.UPDATE: ("~", "yellow"),
    ActionKind.REPLACE: ("±", "red"),
    ActionKind.KEEP: ("=", "dim"),
    ActionKind.DELETE: ("-", "red"),
}


def plan_value(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON: `changes_needed`, `actions`, `pools` and `notes`."""
    return {
        "changes_needed": len(plan.needed),
        "actions": [
            {
                "action": str(action.kind),
                "resource": action.resource,
                "name": action.name,
                "id": action.id,
                "changes": [asdict(change) for change in action.changes],
                "note": action.note,
            }
            for action in plan.actions
        ],
        "pools": [asdict(offer) for offer in plan.offers],
        "most_usd_per_hour": plan.most_usd_per_hour,
        "always_usd_per_hour": plan.always_usd_per_hour,
        "notes": list(plan.notes),
    }


def print_plan(plan: Plan, console: Console) -> None:
    """Print what a plan would do, line by line, and what the GPUs cost."""
    from rich.text import Text

    for action in plan.actions:
        sign, style = _SIGNS[action.kind]
        console.print(Text(f"{sign} {_title(action)}", style=style), soft_wrap=True)
        for change in action.changes:
            console.print(f"    {change.key}: {printable(change.now)} → {change.wanted}", soft_wrap=True)
    _print_offers(plan, console)
    for note in plan.notes:
        console.print(Text(f"note: {printable(note)}", style="yellow"), soft_wrap=True)
    if not plan.needed:
        console.print("nothing to change")


def _title(action: Action) -> str:
    id_ = f" ({action.id})" if action.id else ""
    note = f": {printable(action.note)}" if action.note else ""
    return f"{action.kind} {action.resource} {action.name}{id_}{note}"


def _print_offers(plan: Plan, console: Console) -> None:
    if not plan.offers:
        return
    console.print()
    console.print(offers_table(plan.offers))
    if plan.most_usd_per_hour is not None:
        always = plan.always_usd_per_hour
        without = f"${always:.2f}, day and night," if always else "nothing"
        console.print(
            f"at most ${plan.most_usd_per_hour:.2f} an hour with all workers at work; {without} without a job"
        )


def offers_table(offers: Iterable[PoolOffer]) -> Table:
    """Return pools as a table: their cards, memory, price and stock."""
    from rich.table import Table

    columns = ("pool", "cards", "memory", "a worker's hour", "free now")
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for offer in offers:
        price = "?" if offer.usd_per_hour is None else f"${offer.usd_per_hour:.2f}"
        memory = "?" if offer.memory_gb is None else f"{offer.memory_gb} GB"
        stock = printable(offer.stock.lower()) or "?"
        table.add_row(printable(offer.pool), printable(", ".join(offer.gpus)), memory, price, stock)
    return table


def applied_value(
    plan: dict[str, Any], endpoint_id: str, variables: dict[str, str], *, written: bool | None
) -> dict[str, Any]:
    """Return the result of `apply` as JSON. `written` is None where no file was to be written."""
    return {**plan, "endpoint_id": endpoint_id, "variables": variables, "env_file_changed": written}


def print_applied(value: dict[str, Any], console: Console) -> None:
    """Print the variables that the worker needs. The keys are not among them: they are in the environment already."""
    console.print()
    if value["env_file_changed"] is None:
        console.print("The worker needs these variables, beside the keys (--write-env puts them into .env):")
    else:
        console.print("The worker's variables are in .env, beside the keys that you set:")
    for name, text in value["variables"].items():
        console.print(f"{name}={text}", soft_wrap=True)
