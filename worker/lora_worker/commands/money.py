"""Commands about money: `estimate`."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_worker.commands.terminal import (
    EXIT_USAGE,
    AsJson,
    command_group,
    refuse,
    settings_or_exit,
    show,
    with_services,
)

commands = command_group()


@commands.command()
def estimate(
    dataset_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the dataset; 0: 200 for each pair.")] = 0,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of the dataset.")] = 0,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    base_model: Annotated[str, typer.Option(help="Empty: the worker's default.")] = "",
    gpu: Annotated[str, typer.Option(help="A GPU of the price table.")] = "A100-80GB",
    gpus: Annotated[int, typer.Option(min=0, max=8, help="How many; 0: as many as the endpoint has.")] = 0,
    job: Annotated[str, typer.Option(help="A job's id, instead of all the others.")] = "",
    as_json: AsJson = False,
) -> None:
    """Estimate time and cost of a training, as a range."""
    from lora_worker.commands.estimate import estimate_job, estimate_work, format_estimate
    from lora_worker.errors import ArgumentError
    from lora_worker.money.estimate import Work

    if job:
        found = with_services(lambda services: estimate_job(services, job))
        if found is None:
            raise refuse(
                f"nothing can be said of job {job}: it does not exist, its dataset was not counted, its GPU is "
                "unknown, or no worker has started yet"
            )
    else:
        work = Work(
            tokens=dataset_tokens,
            pairs=pairs,
            epochs=epochs,
            batch_size=batch_size,
            base_model=base_model or None,
            gpu_type=gpu,
        )
        try:
            found = estimate_work(settings_or_exit(), work, gpu_count=gpus)
        except ArgumentError as error:
            raise refuse(str(error), EXIT_USAGE) from None
    show(found, as_json=as_json, text=lambda console: console.print(format_estimate(found)))
