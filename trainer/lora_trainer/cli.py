"""The command line, `lora-trainer …`: what the trainer can do without a job and without a GPU.

Each command imports what it needs in its function, so that --help does not wait for torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lora_trainer.models.bases import BaseModels

app = typer.Typer(
    help="Looks at base models before they are trained, and exports finished adapters.",
    no_args_is_help=True,
    add_completion=False,
    # Importing rich would double the time that --help takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Form(StrEnum):
    """What an export makes of an adapter: the values of `lora_contract.exports.ExportForm`."""

    merged = "merged"
    gguf = "gguf"


class Held(StrEnum):
    """How a base model is held while it trains: the values of `Hyperparameters.quantization`."""

    auto = "auto"
    nf4 = "nf4"
    bf16 = "bf16"


Models = Annotated[list[str], typer.Argument(metavar="MODEL", help="As on huggingface.co, or name@revision.")]
Volume = Annotated[Path | None, typer.Option(help="Default: the mounted network volume.")]


@app.callback()
def begin() -> None:
    """Silence bitsandbytes, before a command imports it."""
    # It warns that a kernel for the CPU is missing, which none of the commands needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@app.command()
def plan(
    base_model: Annotated[str, typer.Option(help="Name on the hub, or the absolute path of a folder.")],
    gpu_gb: Annotated[float, typer.Option(min=1, help="The GPU's memory, in GB of 10⁹ bytes.")] = 80,
    seq: Annotated[int, typer.Option(min=64, help="Tokens of a row.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a forward pass.")] = 1,
    rank: Annotated[int, typer.Option(min=4, max=128)] = 16,
    quantization: Annotated[
        Held, typer.Option(help="How the base is held; auto: as the trainer chooses for this GPU.")
    ] = Held.auto,
) -> None:
    """Say how much GPU memory a training takes. Needs no GPU. Exits with 1 if it does not fit."""
    from lora_contract.hyperparameters import Hyperparameters
    from lora_trainer.errors import TrainingError
    from lora_trainer.models.memory_plan import format_plan
    from lora_trainer.models.plan import plan_for_base

    gpu_bytes = int(gpu_gb * 10**9)
    try:
        memory = plan_for_base(
            base_model,
            Hyperparameters(rank=rank, quantization=quantization.value),
            row_tokens=seq,
            micro_batch=batch,
            volume=Path.home() / ".lora-worker",
            gpu_bytes=gpu_bytes,
        )
    except TrainingError as error:
        typer.echo(error.as_protocol().sentence(), err=True)
        raise typer.Exit(1) from None
    typer.echo(format_plan(memory, gpu_name="the GPU", gpu_bytes=gpu_bytes))
    if max(memory.total, memory.loading_peak) > gpu_bytes:
        raise typer.Exit(1)


@app.command()
def prefetch(models: Models, volume: Volume = None) -> None:
    """Download base models to the network volume before the first job. Resumes a download that broke off."""

    def download(bases: BaseModels, name: str, revision: str | None) -> str:
        base = bases.complete(bases.find(name, revision))
        return f"{base.name}{f' at {base.revision}' if base.revision else ''}: {base.folder}"

    _for_each(models, volume, download)


@app.command()
def judge(models: Models, volume: Volume = None) -> None:
    """Say what the chat template of each model allows, before the model is offered. Downloads no weights."""
    from lora_trainer.data.chat import Chat, prepare_tokenizer
    from lora_trainer.models.loading import load_tokenizer

    def describe(bases: BaseModels, name: str, revision: str | None) -> str:
        tokenizer = load_tokenizer(bases.find(name, revision))
        had_none = prepare_tokenizer(tokenizer)
        return f"{name}: {Chat(tokenizer).rendering}{', with our template' if had_none else ''}"

    _for_each(models, volume, describe)


@app.command()
def examples(
    file: Annotated[Path, typer.Argument(help="A dataset on this machine.")],
    base: Annotated[str, typer.Option(metavar="MODEL", help="As on huggingface.co, or name@revision.")],
    method: Annotated[str, typer.Option(help="sft, dpo or kto.")] = "sft",
    max_length: Annotated[int, typer.Option(help="The most tokens of a row.")] = 2048,
    volume: Volume = None,
) -> None:
    """Count a dataset's tokens and render its first examples, as JSON. Downloads no weights.

    `lora-worker dataset check --base MODEL` calls this and prints it for people.
    """
    from pydantic import ValidationError

    from lora_contract.hyperparameters import Hyperparameters
    from lora_trainer.data.chat import prepare_tokenizer
    from lora_trainer.data.preview import preview
    from lora_trainer.models.loading import load_tokenizer

    try:
        chosen = Hyperparameters.model_validate({"method": method, "max_length": max_length})
    except ValidationError as error:
        where = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        typer.echo(f"{where}: is not a value that a job may have", err=True)
        raise typer.Exit(2) from None

    def count(bases: BaseModels, name: str, revision: str | None) -> str:
        tokenizer = load_tokenizer(bases.find(name, revision))
        prepare_tokenizer(tokenizer)
        return preview(file, tokenizer, chosen).model_dump_json()

    _for_each([base], volume, count)


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="The folder of a finished adapter.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where the result goes; made if it is missing.")],
    form: Annotated[
        Form, typer.Option("--as", help="merged: a whole model in bf16; gguf: the adapter for llama.cpp and Ollama.")
    ] = Form.merged,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Default: the base and revision that the adapter names.")
    ] = None,
    volume: Volume = None,
) -> None:
    """Write an adapter as files for other programs. Goes on where it was killed.

    Merging takes one file of the base after the other, within bounded memory; for gguf no weights of it are read.
    Prints the record of the export as JSON, and each step on standard error. `lora-worker export` calls this.
    """
    from lora_trainer.export.adapter import read_adapter
    from lora_trainer.export.gguf_adapter import export_gguf
    from lora_trainer.export.merged import export_merged

    def say(text: str) -> None:
        typer.echo(text, err=True)

    # Before the base is downloaded, for which an adapter that can't be exported has no use.
    with _saying_errors():
        read = read_adapter(adapter)

    def write(bases: BaseModels, name: str, revision: str | None) -> str:
        found = bases.find(name, revision)
        if form is Form.gguf:
            return export_gguf(read, found, target, say).model_dump_json()
        return export_merged(read, bases.complete(found), target, say).model_dump_json()

    of_adapter = f"{read.base_name}@{read.base_revision}" if read.base_revision else read.base_name
    _for_each([of_adapter if base is None else base], volume, write)


@contextmanager
def _saying_errors() -> Iterator[None]:
    """While this context is open, end with 1 and a sentence on an error of the trainer."""
    from lora_trainer.errors import TrainingError

    try:
        yield
    except TrainingError as error:
        typer.echo(error.as_protocol().sentence(), err=True)
        raise typer.Exit(1) from None


def _for_each(models: Iterable[str], volume: Path | None, work: Callable[[BaseModels, str, str | None], str]) -> None:
    """Call `work` with each model's name and revision, and print its answer. Exit with 1 when one of them failed."""
    from lora_trainer.errors import TrainingError
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.run.volume import find_volume
    from lora_trainer.settings import load_settings

    with _saying_errors():
        bases, failed = BaseModels(find_volume(volume or load_settings().volume)), False
    for wanted in models:
        name, _, revision = wanted.partition("@")
        try:
            typer.echo(work(bases, name, revision or None))
        except TrainingError as error:
            typer.echo(f"{name}: {error.as_protocol().sentence()}", err=True)
            failed = True
        except OSError as error:
            reason = error.strerror or type(error).__name__
            what = error.filename or "a file"
            typer.echo(f"{name}: {what} can't be used ({reason}); choose another --volume", err=True)
            failed = True
    if failed:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
