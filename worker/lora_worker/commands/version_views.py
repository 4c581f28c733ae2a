"""Versions of models and aliases as text, and as values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from lora_worker.commands.job_views import borderless
from lora_worker.commands.terminal import print_lines, printable
from lora_worker.database.version_rows import AliasMove, AliasRow
from lora_worker.versions.listing import Family
from lora_worker.versions.promotion import LIVE, alias_value, names_of, standing
from lora_worker.versions.version import Figures, Version
from lora_worker.words import NOTHING, measured, moment, short_id

if TYPE_CHECKING:
    from rich.console import Console


def values_of(families: Sequence[Family], aliases: Sequence[AliasRow]) -> dict[str, Any]:
    """Return what `models --json` prints."""
    return {
        "models": [
            {
                "name": family.name,
                "best": family.verdict.best.id if family.verdict.best else None,
                "why": family.verdict.sentence,
                "versions": [_value_of(version, family) for version in family.versions],
            }
            for family in families
        ],
        "aliases": [alias_value(alias) for alias in aliases],
    }


def _value_of(version: Version, family: Family) -> dict[str, Any]:
    row = version.row
    return {
        "id": row["id"], "job_id": row["job_id"], "queue": row["queue"], "user_id": row["user_id"],
        "name": row["name"], "version": row["version"], "dataset_id": row["dataset_id"],
        "dataset_name": row["dataset_name"], "dataset_sha256": version.dataset_sha256, "parent_id": row["parent_id"],
        "made_at": row["made_at"], "deleted": row["deleted"], "base_model": row["base_model"],
        "method": row["method"], **asdict(version.figures), "guard_passed": version.guard_passed,
        "applied": version.is_applied, "serving_name": version.serving_name,
        "aliases": [name + LIVE for name in row["aliases"]], "is_best": version is family.verdict.best,
    }  # fmt: skip


def print_models(families: Sequence[Family], aliases: Sequence[AliasRow], console: Console) -> None:
    """Print the versions of each model as a table, the best one marked, and below it why."""
    if not families:
        console.print("no such models")
    for family in families:
        console.print(Text(printable(family.name), style="bold"))
        table = borderless()
        for heading in ("", "job", "version", "base loss", "tuned", "gain", "score", "general", "method", "base model"):
            table.add_column(heading, no_wrap=True)
        table.add_column("called", overflow="fold")
        for version in family.versions:
            table.add_row(*_cells(version, is_best=version is family.verdict.best))
        console.print(table)
        print_lines(console, [family.verdict.sentence, ""])
    print_lines(console, [f"{alias['name']}{LIVE} {standing(alias)}" for alias in aliases if not alias["served"]])


def _cells(version: Version, *, is_best: bool) -> list[str]:
    row, figures = version.row, version.figures
    return [
        "★" if is_best else "",
        short_id(row["job_id"]),
        printable(row["version"]) or NOTHING,
        measured(figures.base_loss),
        measured(figures.tuned_loss),
        _gain(figures),
        NOTHING if figures.score is None else str(figures.score),
        _general(version),
        printable(row["method"]) or NOTHING,
        printable(row["base_model"]) or NOTHING,
        "deleted" if row["deleted"] else ", ".join(map(printable, names_of(version))) or NOTHING,
    ]


def _gain(figures: Figures) -> str:
    if figures.gain is None:
        return NOTHING
    if figures.gain_low is None or figures.gain_high is None:
        return measured(figures.gain, 3)
    return f"{measured(figures.gain, 3)} ({measured(figures.gain_low, 3)} to {measured(figures.gain_high, 3)})"


def _general(version: Version) -> str:
    """By how much the loss on general text rose, and whether that is too much."""
    change = version.figures.general_change_percent
    words = NOTHING if change is None else f"{change:+.1f} %"
    return f"{words} worse" if version.guard_passed is False else words


def print_aliases(aliases: Sequence[AliasRow], console: Console) -> None:
    """Print a line for each alias: where it leads, and where it stands."""
    if not aliases:
        console.print("no aliases: `lora-worker promote JOB` makes one")
    for alias in aliases:
        job = f"job {alias['job_id']}" if alias["job_id"] else "a job that is gone"
        print_lines(console, [f"{alias['name']}{LIVE}  {alias['adapter']}, {job}: it {standing(alias)}"])


def print_moves(alias: AliasRow, moves: Sequence[AliasMove], console: Console) -> None:
    """Print where an alias leads, and its moves, newest first."""
    print_aliases([alias], console)
    table = borderless()
    for heading in ("move", "when", "by", "from job", "to job", ""):
        table.add_column(heading, overflow="fold")
    for move in moves:
        table.add_row(
            str(move["number"]),
            moment(move["moved_at"]),
            printable(move["moved_by"]),
            short_id(move["from_job_id"]),
            short_id(move["job_id"]),
            f"back to move {move['restores']}" if move["restores"] else "",
        )
    console.print(table)
