"""A result of the doctor, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check. `remedy` is empty if nothing is wrong; `ok` is None if the check was not made."""

    subject: str
    ok: bool | None
    finding: str
    remedy: str = ""


def as_check(subject: str, problem: str) -> Check:
    """Make a check of an error's sentence. What stands after its colon is the remedy."""
    finding, _, remedy = problem.partition(": ")
    return Check(subject, False, finding, remedy)


def print_checks(checks: Iterable[Check], console: Console) -> None:
    """Print a line for each check: whether it holds, what was found, and the remedy where there is one."""
    for check in checks:
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[check.ok]
        remedy = f" → {check.remedy}" if check.remedy else ""
        console.print(f"{mark} {check.subject}: {check.finding}{remedy}", soft_wrap=True)
