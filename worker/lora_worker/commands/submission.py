"""Commands for people without the application: `enqueue`, `download`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.terminal import AsJson, command_group, show, with_services

if TYPE_CHECKING:
    from lora_worker.services import Services
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
    method: Annotated[str, typer.Option(help="sft (answers), dpo (pairs) or kto (answers with a thumb).")] = "",
    beta: Annotated[float | None, typer.Option(help="Of dpo and kto; 0.1 by default.")] = None,
    init_adapter: Annotated[
        str, typer.Option(help="Begin with an adapter of the same user: the id of its model or its job.")
    ] = "",
    gpu: Annotated[str, typer.Option(help="A GPU of the price table; empty: the endpoint's, or A100-80GB.")] = "",
    name: Annotated[str, typer.Option(help="The dataset's name, and the model's; empty: that of the file.")] = "",
    user: Annotated[
        str, typer.Option(help="Id or mail address of its owner; empty: a user of the operator's own.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Show the job until it has ended; exit 3 if it failed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a dataset, store it, and queue a job for it. A bad file is refused with its line, and nothing is stored."""
    from lora_worker.submission.orders import Order
    from lora_worker.submission.orders import enqueue as submit

    wished = {"base_model": base or None, "epochs": epochs, "rank": rank, "learning_rate": learning_rate,
              "batch_size": batch_size, "method": method or None, "beta": beta,
              "init_adapter": init_adapter or None}  # fmt: skip
    order = Order(
        file=file,
        hyperparameters={key: value for key, value in wished.items() if value is not None},
        gpu=gpu or None,
        name=name or None,
        user=user or None,
    )

    async def work(services: Services) -> tuple[dict[str, Any], int]:
        from lora_worker.commands.job_progress import change_of
        from lora_worker.commands.waiting import exit_code, wait_until_ended
        from lora_worker.commands.watching import watch_job

        queued = await submit(services, order, say=_to_stderr)
        answer = _queued(queued)
        # A program that is interrupted while it waits has an id, too.
        if wait or not as_json:
            typer.echo(f"queued as {queued.job_id}", err=as_json)
        if not wait:
            return answer, 0
        if not as_json:
            return answer, await watch_job(services, str(queued.job_id), as_json=False)
        details = await wait_until_ended(services.queue, queued.job_id)
        change = change_of(details)
        ended = {
            **{key: details["job"][key] for key in ("status", "error_message", "final_cost")},
            "improvement": change["improvement"],
            "serving_name": change["serving_name"],
        }
        return {**answer, **ended}, exit_code(details)

    answer, code = with_services(work)
    if as_json:
        show(answer, as_json=True, text=lambda _: None)
    if code:
        raise typer.Exit(code)


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
    job: Annotated[str, typer.Argument(help="A completed job's id, or a beginning of it.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where its files go; made if it is missing.")],
    as_json: AsJson = False,
) -> None:
    """Fetch the adapter of a job, with size and sha256 of each file checked; goes on where it was broken off."""
    from lora_worker.commands.references import find_job
    from lora_worker.submission.downloads import download as fetch

    async def work(services: Services) -> Download:
        return await fetch(services, await find_job(services.queue, job), folder, say=_to_stderr)

    done = with_services(work)
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
