"""The answers of base and adapter to the same prompts, side by side in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lora_contract.words import counted
from lora_worker.commands.terminal import printable, printable_text

if TYPE_CHECKING:
    from rich.console import Console

    from lora_contract.evaluation import Sample

_PROMPT_CHARACTERS, _ANSWER_CHARACTERS = 600, 1_500
"""Of each text so much is shown; `download` fetches the whole file."""


def print_samples(samples: Sequence[Sample], console: Console) -> None:
    """Print each prompt with both answers and that of the dataset. All of it is a user's text, and printed as text."""
    for number, sample in enumerate(samples, 1):
        origin = "held-out prompt" if sample.held_out else "general prompt"
        console.print(Text(f"\n{origin} {number} of {len(samples)}", style="bold"))
        console.print(_prompt(sample), soft_wrap=False)
        answers = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        columns = [("base", sample.base), ("adapter", sample.tuned)]
        if sample.reference is not None:
            columns.append(("dataset", sample.reference))
        for name, _ in columns:
            answers.add_column(name, ratio=1, overflow="fold")
        answers.add_row(*(Text(printable_text(text, _ANSWER_CHARACTERS) or "(nothing)") for _, text in columns))
        console.print(answers)


def _prompt(sample: Sample) -> Text:
    """The last message, and how many came before it."""
    if not sample.prompt:
        return Text("(no prompt)", style="dim")
    last, earlier = sample.prompt[-1], len(sample.prompt) - 1
    before = f" (after {counted(earlier, 'message')})" if earlier else ""
    text = printable_text(last.content, _PROMPT_CHARACTERS)
    return Text.assemble((f"{printable(last.role)}{before}: ", "dim"), text)
