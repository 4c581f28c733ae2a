"""`python -m tests.chaos`: every fault, and SIGKILL at every crash point. Exit 1 if a promise was broken."""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from lora_contract.crash_points import CRASH_POINTS
from tests.chaos import crashes
from tests.chaos.clouds import CLOUDS
from tests.chaos.clouds.base import Cloud
from tests.chaos.clouds.runpod import RunPodCloud
from tests.chaos.crew import ROOT
from tests.chaos.faults import faults_of
from tests.chaos.report import PointCount, Report, show, show_row
from tests.chaos.scene import Scene, play
from tests.chaos.verdict import Row
from tests.chaos.world import World

_GPUS = 10
_CRASH_GPUS = 4
_LOGS = ROOT / ".sandbox" / "chaos-logs"
"""The folder to which the logs of a broken promise are copied."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments. Exits with 2 if a pattern matches nothing: a run without a fault would prove nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults and crashes, real processes")
    parser.add_argument("--launcher", default=RunPodCloud.name, choices=tuple(CLOUDS), help="where the jobs train")
    parser.add_argument("--faults", default="*", metavar="PATTERN", help="only faults with such a name; '' for none")
    parser.add_argument("--jobs", type=int, default=50, help="jobs of each fault")
    parser.add_argument("--points", default="*", metavar="PATTERN", help="only crash points with such a name")
    parser.add_argument("--seeds", type=int, default=20, help="kills at each crash point")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, default=Path("chaos-report.json"))
    found = parser.parse_args(arguments)
    if found.launcher != RunPodCloud.name:
        # The kills at crash points follow a trainer into RunPod's containers.
        found.points = ""
    for option, names in (("faults", faults_of(CLOUDS[found.launcher])), ("points", CRASH_POINTS)):
        pattern = getattr(found, option)
        if pattern and not fnmatch.filter(names, pattern):
            parser.error(f"--{option}: {pattern!r} names none; the pattern is a shell's, such as '*429*'")
    if not (found.faults or found.points):
        parser.error("--faults and --points are both empty: nothing is left to do")
    return found


def play_faults(pattern: str, *, cloud: type[Cloud], jobs: int, seed: int) -> Iterator[Row]:
    """Play every fault whose name matches, in one world, or in a new one after a broken promise."""
    chosen = {name: act for name, act in faults_of(cloud).items() if fnmatch.fnmatch(name, pattern)}
    world: World | None = None
    try:
        for name, act in chosen.items():
            world = world or World.start(gpus=_GPUS, cloud=cloud)
            row = play(world, name, act, jobs=jobs, seed=seed)
            yield row
            if not row.is_clean:
                world.keep_logs(_LOGS / re.sub(r"\W+", "-", name))
                world.close()
                world = None
    finally:
        if world is not None:
            world.close()


def play_crashes(console: Console, pattern: str, *, seeds: int, seed: int) -> tuple[list[Row], list[PointCount]]:
    """SIGKILL at every crash point whose name matches."""
    points: list[PointCount] = []
    chosen = fnmatch.filter(CRASH_POINTS, pattern)
    if not chosen:
        return [], []

    def act(scene: Scene) -> None:
        points.extend(crashes.kill_everywhere(scene, seeds=seeds, only=chosen))

    with World.start(gpus=_CRASH_GPUS, workers=1, env=crashes.ENV) as world:
        row = play(world, f"SIGKILL at each crash point, {seeds} seeds", act, jobs=0, seed=seed)
        show_row(console, row)
        if not row.is_clean:
            world.keep_logs(_LOGS / "crash-points")
    return [row], points


def main() -> int:
    """Run what was asked for; the exit status."""
    arguments = parse()
    console = Console(width=None if sys.stdout.isatty() else 240)
    began = time.monotonic()
    rows: list[Row] = []

    def report(points: Sequence[PointCount] = ()) -> Report:
        made = Report(arguments.seed, round(time.monotonic() - began), rows, points)
        made.write(arguments.report)
        return made

    # Sequentially: on two cores, both at once take three times as long each, and leases expire.
    for row in play_faults(
        arguments.faults, cloud=CLOUDS[arguments.launcher], jobs=arguments.jobs, seed=arguments.seed
    ):
        rows.append(row)
        show_row(console, row)
        # After each, so that a run which somebody ends has a report of what it played.
        report()
    crash_rows, points = play_crashes(console, arguments.points, seeds=arguments.seeds, seed=arguments.seed)
    rows += crash_rows
    whole = report(points)
    show(console, whole)
    return 0 if whole.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
