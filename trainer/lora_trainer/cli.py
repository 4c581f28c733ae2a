"""The command line, `lora-trainer …`: what can be asked of the trainer without a job, and mostly without a GPU.

Imports what a command needs inside it, so that --help is instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lora_trainer.models.bases import BaseModels

app = typer.Typer(
    help="Looks at base models before they are trained: memory, files, chat templates.",
    no_args_is_help=True,
    add_completion=False,
    # rich would double the time that --help takes
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Models = Annotated[list[str], typer.Argument(metavar="MODEL", help="As on huggingface.co, or name@revision.")]
Volume = Annotated[Path | None, typer.Option(help="Default: the mounted network volume.")]


@app.command()
def plan(
    base_model: Annotated[str, typer.Option(help="Name on the hub, or the absolute path of a folder.")],
    gpu_gb: Annotated[float, typer.Option(min=1, help="The GPU's memory, in GB of 10⁹ bytes.")] = 80,
    seq: Annotated[int, typer.Option(min=64, help="Tokens of a row.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a forward pass.")] = 1,
    rank: Annotated[int, typer.Option(min=4, max=128)] = 16,
) -> None:
    """How much memory a training takes, without a GPU; 1 where it does not fit."""
    import logging

    from lora_contract.hyperparameters import Hyperparameters
    from lora_trainer.errors import TrainingError
    from lora_trainer.models.plan import format_plan, plan_for_base

    # It warns that a CPU kernel is missing, which a plan does not need.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        made = plan_for_base(
            base_model,
            Hyperparameters(rank=rank),
            row_tokens=seq,
            micro_batch=batch,
            volume=Path.home() / ".lora-worker",
        )
    except TrainingError as error:
        typer.echo(error.as_protocol().sentence(), err=True)
        raise typer.Exit(1) from None
    gpu_bytes = int(gpu_gb * 10**9)
    typer.echo(format_plan(made, gpu_name="the GPU", gpu_bytes=gpu_bytes))
    if max(made.total, made.loading_peak) > gpu_bytes:
        raise typer.Exit(1)


@app.command()
def prefetch(models: Models, volume: Volume = None) -> None:
    """Fill the network volume before the first job. A download that broke off goes on where it stopped."""

    def download(bases: BaseModels, name: str, revision: str | None) -> str:
        base = bases.complete(bases.find(name, revision))
        return f"{base.name}{f' at {base.revision}' if base.revision else ''}: {base.folder}"

    _for_each(models, volume, download)


@app.command()
def judge(models: Models, volume: Volume = None) -> None:
    """What the chat template of each model allows, by its tokenizer alone: before it is offered."""
    from lora_trainer.data.chat import Chat, prepare_tokenizer
    from lora_trainer.models.loading import load_tokenizer

    def look(bases: BaseModels, name: str, revision: str | None) -> str:
        tokenizer = load_tokenizer(bases.find(name, revision))
        own = prepare_tokenizer(tokenizer)
        return f"{name}: {Chat(tokenizer).rendering}{', with our template' if own else ''}"

    _for_each(models, volume, look)


def _for_each(models: Iterable[str], volume: Path | None, work: Callable[[BaseModels, str, str | None], str]) -> None:
    """Do the work on each model and print what it says; ends with 1 when one of them failed."""
    from lora_trainer.errors import TrainingError
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.run.volume import find_volume
    from lora_trainer.settings import Settings

    bases, failed = BaseModels(find_volume(volume or Settings().volume)), False
    for wanted in models:
        name, _, revision = wanted.partition("@")
        try:
            typer.echo(work(bases, name, revision or None))
        except TrainingError as error:
            typer.echo(f"{name}: {error.as_protocol().sentence()}", err=True)
            failed = True
    if failed:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
