"""Commands for people without the application: `enqueue`, `download`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from lora_worker.commands.terminal import EXIT_USAGE, AsJson, command_group, refuse, show, with_services

if TYPE_CHECKING:
    from lora_worker.submission.downloads import Download
    from lora_worker.submission.orders import Queued

commands = command_group()


@commands.command()
def enqueue(
    file: Annotated[
        Path, typer.Argument(help="A dataset: JSON Lines or JSON, in any of the formats of docs/formats.md.")
    ],
    base: Annotated[str, typer.Option(help="Base model; empty: the worker's default.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Times that the dataset is trained on; 3 by default.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter; 16 by default.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="1e-4 by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Answers that a step learns; 4 by default.")] = None,
    gpu: Annotated[str, typer.Option(help="A GPU of the price table; empty: the endpoint's, or A100-80GB.")] = "",
    name: Annotated[str, typer.Option(help="The dataset's name, and the model's; empty: that of the file.")] = "",
    user: Annotated[
        str, typer.Option(help="Id or mail address of its owner; empty: a user of the operator's own.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check a dataset, store it, and queue a job for it. A bad file is refused with its line, and nothing is stored."""
    from lora_worker.submission.orders import Order
    from lora_worker.submission.orders import enqueue as submit

    wished = {"base_model": base or None, "epochs": epochs, "rank": rank, "learning_rate": learning_rate,
              "batch_size": batch_size}  # fmt: skip
    order = Order(
        file=file,
        hyperparameters={key: value for key, value in wished.items() if value is not None},
        gpu=gpu or None,
        name=name or None,
        user=user or None,
    )
    queued = with_services(lambda services: submit(services, order, say=_to_stderr))
    show(_queued(queued), as_json=as_json, text=lambda console: console.print(f"queued as {queued.job_id}"))


def _queued(queued: Queued) -> dict[str, Any]:
    return {
        "job_id": str(queued.job_id),
        "dataset_id": str(queued.dataset_id),
        "user_id": str(queued.user_id),
        "pairs": queued.pairs,
        "tokens": queued.tokens,
        "notes": list(queued.notes),
    }


@commands.command()
def download(
    job: Annotated[str, typer.Argument(help="The id of a completed job.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where its files go; made if it is missing.")],
    as_json: AsJson = False,
) -> None:
    """Fetch the adapter of a job, with size and sha256 of each file checked; goes on where it was broken off."""
    from lora_worker.submission.downloads import download as fetch

    try:
        job_id = UUID(job)
    except ValueError:
        raise refuse(f"JOB: {job!r} is not the id of a job", EXIT_USAGE) from None
    done = with_services(lambda services: fetch(services, job_id, folder, say=_to_stderr))
    show(_downloaded(done), as_json=as_json, text=lambda console: console.print(f"{len(done.files)} files in {folder}"))


def _downloaded(done: Download) -> dict[str, Any]:
    return {
        "job_id": str(done.job_id),
        "run_id": str(done.run_id),
        "directory": str(done.folder),
        "files": [
            {"path": file.path, "bytes": file.bytes, "sha256": file.sha256, "status": file.status}
            for file in done.files
        ],
    }


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)
