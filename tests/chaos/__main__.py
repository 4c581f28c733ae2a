"""`python -m tests.chaos`: every fault, then SIGKILL at every crash point. Exit 1 if a promise was broken."""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
import time
from pathlib import Path

from rich.console import Console

from tests.chaos.crew import ROOT
from tests.chaos.faults import FAULTS
from tests.chaos.report import Report, show, show_row
from tests.chaos.scene import play
from tests.chaos.verdict import Row
from tests.chaos.world import World

_RUNPOD_WORKERS = 10
_LOGS = ROOT / ".sandbox" / "chaos-logs"
"""Where the logs of a broken promise are kept."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults and crashes, real processes")
    parser.add_argument("--faults", default="*", metavar="PATTERN", help="only faults with such a name; '' for none")
    parser.add_argument("--jobs", type=int, default=50, help="jobs of each fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, default=Path("chaos-report.json"))
    return parser.parse_args()


def play_faults(console: Console, pattern: str, *, jobs: int, seed: int) -> list[Row]:
    """Every fault whose name matches, in one world as long as it stays whole."""
    chosen = {name: act for name, act in FAULTS.items() if fnmatch.fnmatch(name, pattern)}
    rows: list[Row] = []
    world: World | None = None
    try:
        for name, act in chosen.items():
            world = world or World.start(runpod_workers=_RUNPOD_WORKERS)
            row = play(world, name, act, jobs=jobs, seed=seed)
            rows.append(row)
            show_row(console, row)
            if not row.is_clean:
                world.keep_logs(_LOGS / re.sub(r"\W+", "-", name))
                world.close()
                world = None
    finally:
        if world is not None:
            world.close()
    return rows


def main() -> int:
    """Run what was asked for; the exit status."""
    arguments = _parse()
    console = Console(width=None if sys.stdout.isatty() else 240)
    began = time.monotonic()
    rows = play_faults(console, arguments.faults, jobs=arguments.jobs, seed=arguments.seed)
    report = Report(arguments.seed, round(time.monotonic() - began), rows, [])
    report.write(arguments.report)
    show(console, report)
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
