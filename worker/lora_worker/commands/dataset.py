"""Commands about files on this machine: `dataset check`, `dataset convert`. They need no key and no connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.terminal import EXIT_FAILED, EXIT_USAGE, AsJson, command_group, refuse, show

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Hyperparameters
    from lora_worker.conversion.convert import Conversion

commands = command_group()
dataset = typer.Typer(
    help="Look at a dataset on this machine before it is uploaded, or convert a file into one.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
commands.add_typer(dataset, name="dataset")

BaseModel = Annotated[str, typer.Option(help="Base model, whose tokenizer and chat template count; empty: estimate.")]


@dataset.command()
def check(
    file: Annotated[Path, typer.Argument(help="JSON Lines or JSON, in any of the formats of docs/formats.md.")],
    base: BaseModel = "",
    method: Annotated[str, typer.Option(help="sft, dpo or kto.")] = "sft",
    max_length: Annotated[int, typer.Option(help="The most tokens of an example.")] = 2048,
    epochs: Annotated[int, typer.Option(help="For the estimate.")] = 3,
    batch_size: Annotated[int, typer.Option(help="For the estimate.")] = 4,
    gpu: Annotated[str, typer.Option(help="A GPU of the price table; empty: the endpoint's, or A100-80GB.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what the validator would say of a file, how long its examples are, and what a training would cost.

    Exits with 1 and a sentence if the file would be refused. Three examples are shown, with what is learned of them.
    """
    from lora_worker.commands.dataset_views import print_checked
    from lora_worker.errors import ArgumentError, SettingsError
    from lora_worker.launchers.registry import load_unconnected_settings
    from lora_worker.submission.checking import as_answer, check_file

    chosen = _chosen(
        base_model=base or None, method=method, max_length=max_length, epochs=epochs, batch_size=batch_size
    )
    try:
        checked = check_file(file, chosen, gpu or None, load_unconnected_settings())
    except (ArgumentError, SettingsError) as error:
        raise refuse(str(error), EXIT_USAGE) from None
    show(
        as_answer(file, chosen, checked), as_json=as_json, text=lambda console: print_checked(checked, chosen, console)
    )
    if checked.refusal is not None:
        raise refuse(f"{file.name} would be refused: {checked.refusal}", EXIT_FAILED)


def _chosen(**values: Any) -> Hyperparameters:
    """Check options as the worker checks a job's hyperparameters; exits with 2 and a sentence where one is wrong."""
    from uuid import UUID

    from lora_worker.database.rows import Job, parse_hyperparameters
    from lora_worker.errors import PreflightError

    nobody = UUID(int=0)
    try:
        chosen = parse_hyperparameters(
            Job(id=nobody, user_id=nobody, hyperparameters=values), default_base_model=values["base_model"] or "?"
        )
    except PreflightError as error:
        raise refuse(str(error), EXIT_USAGE) from None
    return chosen.model_copy(update={"base_model": values["base_model"]})


@dataset.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="CSV, Parquet, an export of ChatGPT or Claude (conversations.json), or any format of docs/formats.md.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The new file: JSON Lines of messages.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a file into JSON Lines of messages, and count by reason what it can't take.

    Pairs of answers become OpenAI's preference lines, answers with a thumb get a label. Nothing is left out silently.
    """
    from lora_worker.commands.dataset_views import print_conversion
    from lora_worker.conversion.convert import convert as run
    from lora_worker.errors import ArgumentError

    try:
        done = run(source, target, force=force)
    except ArgumentError as error:
        raise refuse(str(error), EXIT_USAGE) from None
    show(
        _converted(source, target, done), as_json=as_json, text=lambda console: print_conversion(done, target, console)
    )


def _converted(source: Path, target: Path, done: Conversion) -> dict[str, Any]:
    return {
        "input": str(source),
        "output": str(target),
        "source": done.source,
        "read": done.read,
        "written": done.written,
        "left_out": [{"reason": left.reason, "count": left.count, "first": left.first} for left in done.left_out],
        "notes": done.notes,
    }
