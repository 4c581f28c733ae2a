"""What `dataset check` and `dataset convert` print for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lora_contract.hyperparameters import Hyperparameters
from lora_contract.lengths import Lengths, Rendered
from lora_contract.words import counted
from lora_worker.commands.estimate import format_duration
from lora_worker.commands.terminal import harmless, print_lines
from lora_worker.conversion.convert import Conversion
from lora_worker.submission.checking import Checked

_BAR_COLUMNS = 40
_LEARNED = "bold green"
_MARKS = ("⟦", "⟧")
"""What encloses the learned part where there are no colours."""


def print_checked(checked: Checked, chosen: Hyperparameters, console: Console) -> None:
    """Print what was found in a file."""
    survey = checked.survey
    read = f"{survey.format or 'no known format'}, {survey.bytes:,} bytes, for method {chosen.method}"
    print_lines(
        console,
        [
            f"{counted(survey.examples, 'example')} with {counted(survey.answers, 'learned answer')} in "
            f"{counted(survey.conversations, 'conversation')}: {read}",
            *(error.sentence() for error in survey.errors),
            *(f"Note: {note.text}" for note in survey.notes),
        ],
    )
    if survey.examples:
        _print_lengths(checked.lengths, chosen.max_length, checked.without_tokenizer, console)
        print_rendered(checked.lengths.rendered, console)
    if checked.estimate is not None:
        found = checked.estimate
        took = f"{format_duration(found.seconds.low)} to {format_duration(found.seconds.high)}"
        cost = f"${found.cost.low:.2f} to ${found.cost.high:.2f}"
        print_lines(console, ["", f"A training: {took}, {cost}, on {found.gpu_count} × {found.gpu_type}."])


def _print_lengths(lengths: Lengths, max_length: int, why_estimated: str | None, console: Console) -> None:
    how = (
        "counted by the base model's tokenizer" if lengths.counted_by == "tokenizer" else f"estimated: {why_estimated}"
    )
    some = "" if lengths.is_complete else f" Of the first {lengths.sequences:,} sequences."
    print_lines(console, ["", f"Tokens ({how}).{some}"])
    most = max((bar.sequences for bar in lengths.histogram), default=1)
    for bar in lengths.histogram:
        drawn = "█" * -(-bar.sequences * _BAR_COLUMNS // most)
        console.print(f"  up to {bar.up_to:>7,}  {drawn} {bar.sequences:,}", soft_wrap=True)
    print_lines(console, [_cuts(lengths, max_length)])


def _cuts(lengths: Lengths, max_length: int) -> str:
    if lengths.shortened is not None and lengths.left_out is not None:
        return (
            f"With max_length {max_length:,}: {counted(lengths.shortened, 'row')} shortened, "
            f"{counted(lengths.left_out, 'answer')} left out; the longest has {lengths.longest:,} tokens."
        )
    return (
        f"{counted(lengths.longer, 'sequence')} longer than max_length ({max_length:,}), which would be shortened or "
        f"left out; the longest has about {lengths.longest:,} tokens."
    )


def print_rendered(rendered: Iterable[Rendered], console: Console) -> None:
    """Print examples as the model sees them, with what is learned in green, or in marks where there are no colours."""
    for example in rendered:
        title = f" ({example.title})" if example.title else ""
        legend = "what is learned is green" if console.is_terminal else f"what is learned is in {''.join(_MARKS)}"
        print_lines(console, ["", f"Line {example.line:,}{title}, {legend}:"])
        text = Text()
        for part in example.parts:
            shown = harmless(part.text.replace("\t", "    "))
            if part.learned and not console.is_terminal:
                shown = f"{_MARKS[0]}{shown}{_MARKS[1]}"
            text.append(shown, style=_LEARNED if part.learned else None)
        console.print(text, soft_wrap=True)


def print_conversion(done: Conversion, target: Path, console: Console) -> None:
    """Print what became of a file."""
    read = {"csv": "row", "parquet": "row"}.get(done.source, "value")
    lines = [f"{counted(done.written, 'example')} of {counted(done.read, read)} in {target}"]
    lines += [f"Left out: {left.count:,} × {left.reason} (first: {left.first:,})." for left in done.left_out]
    print_lines(console, [*lines, *done.notes])
