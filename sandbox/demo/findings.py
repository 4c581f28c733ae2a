"""What the answers of base and adapter show: side by side, counted, and held against the goal."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandbox.demo.answers import Comparison
from sandbox.demo.bases import SMOLLM2, Goal, recipe_of_smollm2
from sandbox.errors import DemoError

RECORD = Path(__file__).with_name("smollm2_answers.json")
"""The real model's answers, recorded by `make demo MODEL=smollm2 ARGS=--record`."""
_SHOWN, _SHOWN_CHARACTERS = 4, 180


@dataclass(frozen=True)
class Findings:
    """A comparison, and how many of its answers show the taught manner."""

    comparison: Comparison
    goal: Goal | None = None
    """None: there is no manner to count."""
    in_manner_base: int = 0
    in_manner_adapter: int = 0

    def as_json(self) -> dict[str, Any]:
        """What `demo-report.json` says about the answers."""
        compared = self.comparison
        found: dict[str, Any] = {
            "held_out_questions": len(compared.questions),
            "held_out_loss": {"base": compared.loss_base, "adapter": compared.loss_adapter},
            "answers": [
                {"question": question, "base": base, "adapter": adapter}
                for question, base, adapter in zip(compared.questions, compared.base, compared.adapter, strict=True)
            ],
        }
        if self.goal is not None:
            found["in_manner"] = {"base": self.in_manner_base, "adapter": self.in_manner_adapter}
        return found

    def check(self) -> None:
        """Hold the counts against the goal.

        Raises:
            DemoError: too many of the base's answers show the manner, or too few of the adapter's.
        """
        if self.goal is None:
            return
        asked = len(self.comparison.questions)
        if self.in_manner_base > self.goal.most_before * asked:
            raise DemoError(
                f"{self.in_manner_base} of {asked} answers of the base show the manner already, so it proves nothing"
            )
        if self.in_manner_adapter < self.goal.least_after * asked:
            raise DemoError(
                f"only {self.in_manner_adapter} of {asked} answers show the taught manner; "
                f"{self.goal.least_after:.0%} should"
            )


def judge(comparison: Comparison, goal: Goal | None) -> Findings:
    """Count the answers that show the goal's manner."""
    if goal is None:
        return Findings(comparison)
    base, adapter = (sum(map(goal.has_manner, answers)) for answers in (comparison.base, comparison.adapter))
    return Findings(comparison, goal, base, adapter)


def show_answers(findings: Findings, console: Console) -> None:
    """Print some answers side by side, the held-out losses and the counts."""
    compared = findings.comparison
    if not compared.questions:
        console.print("No held-out conversation is short enough to be asked on a CPU.")
        return
    table = Table("question", "base model", "with adapter", title="Held-out questions", show_lines=True)
    for row in list(zip(compared.questions, compared.base, compared.adapter, strict=True))[:_SHOWN]:
        table.add_row(*(escape(textwrap.shorten(text, _SHOWN_CHARACTERS, placeholder=" …")) for text in row))
    console.print(table)
    if compared.loss_base is not None and compared.loss_adapter is not None:
        console.print(f"held-out loss: {compared.loss_base:.2f} → {compared.loss_adapter:.2f}")
    if findings.goal is not None:
        asked = len(compared.questions)
        console.print(
            f"{findings.goal.manner}: {findings.in_manner_base} of {asked} answers of the base, "
            f"[bold]{findings.in_manner_adapter} of {asked}[/bold] with the adapter"
        )


def keep_record(findings: Findings) -> None:
    """Keep the answers in the repository, with all that they depend on."""
    made = {
        "made_by": "make demo MODEL=smollm2 ARGS=--record",
        "base_model": SMOLLM2.name,
        "recipe": recipe_of_smollm2(),
        "comparison": asdict(findings.comparison),
    }
    RECORD.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


def read_record() -> Findings:
    """The recorded answers of the real model."""
    recorded = json.loads(RECORD.read_text())
    return judge(Comparison(**recorded["comparison"]), SMOLLM2.goal)


def show_recorded(console: Console) -> None:
    """Print what the same chain makes of a real model."""
    console.print(
        f"\nA model of a million weights only shows that the chain works. What it makes of a real one, {SMOLLM2.name}, "
        "recorded ([bold]make demo MODEL=smollm2[/bold] repeats it in minutes):"
    )
    show_answers(read_record(), console)
