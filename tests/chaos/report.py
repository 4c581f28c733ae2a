"""The table on the terminal, and chaos-report.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.verdict import Row

_SHOWN = 12

_COLUMNS: tuple[tuple[str, str], ...] = (
    ("jobs", "jobs"),
    ("completed", "completed"),
    ("failed", "failed rightly"),
    ("cancelled", "cancelled"),
    ("lost", "lost"),
    ("wrong", "ended wrongly"),
    ("trained_twice", "trained twice"),
    ("trainings", "trainings"),
    ("launches", "launches"),
    ("orphans", "orphans"),
    ("duplicate_points", "dup. points"),
    ("duplicate_artifacts", "dup. artifacts"),
    ("duplicate_costs", "dup. costs"),
    ("duplicate_notices", "dup. notices"),
    ("missing", "missing rows"),
    ("recovery_seconds", "recovery s"),
)


@dataclass(frozen=True)
class PointCount:
    """How often a crash point was reached, and how often a process was killed there."""

    point: str
    reached: int
    killed: int
    wanted: int

    @property
    def is_clean(self) -> bool:
        """Whether as many processes died there as planned."""
        return self.killed >= self.wanted


@dataclass(frozen=True)
class Report:
    """The results of one run of the suite."""

    seed: int
    seconds: float
    rows: Sequence[Row]
    points: Sequence[PointCount]

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept, and every crash point hit."""
        return all(row.is_clean for row in self.rows) and all(point.is_clean for point in self.points)

    def as_json(self) -> dict[str, Any]:
        """The report's file."""
        return {
            "clean": self.is_clean,
            "seed": self.seed,
            "seconds": self.seconds,
            "faults": [{**asdict(row), "clean": row.is_clean} for row in self.rows],
            "crash_points": [asdict(point) for point in self.points],
        }

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n")


def show_row(console: Console, row: Row) -> None:
    """Print one row of the table, and what is wrong with it."""
    ends = f"{row.completed} completed, {row.failed} failed, {row.cancelled} cancelled of {row.jobs}"
    mark = "ok  " if row.is_clean else "FAIL"
    recovery = "" if row.recovery_seconds is None else f", recovered in {row.recovery_seconds:.1f} s"
    console.print(f"{mark} {row.fault}: {ends}{recovery} ({row.seconds:.0f} s)", highlight=False)
    for complaint in row.complaints[:_SHOWN]:
        console.print(f"       {complaint}", highlight=False)
    if len(row.complaints) > _SHOWN:
        console.print(f"       … and {len(row.complaints) - _SHOWN} more", highlight=False)


def show(console: Console, report: Report) -> None:
    """The whole report."""
    table = Table("fault", *(title for _, title in _COLUMNS), title="Faults")
    for row in report.rows:
        values = [getattr(row, name) for name, _ in _COLUMNS]
        shown = ["–" if value is None else str(value) for value in values]
        table.add_row(row.fault, *shown, style=None if row.is_clean else "red")
    console.print(table)
    if report.points:
        points = Table("crash point", "reached", "killed there", title="Crash points")
        for point in report.points:
            points.add_row(point.point, str(point.reached), str(point.killed), style=None if point.is_clean else "red")
        console.print(points)
    console.print(f"{'Every promise kept' if report.is_clean else 'FAILED'} in {report.seconds:.0f} s.")
