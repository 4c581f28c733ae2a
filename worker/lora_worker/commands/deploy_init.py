"""The command `deploy init`: writes a commented `deploy.toml` from options, and asks for what they leave open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.deploy_access import say
from lora_worker.commands.terminal import EXIT_USAGE, AsJson, make_console, may_ask, printable, refuse, show

if TYPE_CHECKING:
    from rich.console import Console

_VOLUME_GB = 100
"""Enough for some models of 7 to 8 billion parameters, each about 15 GB, and checkpoints."""

Items = list[str] | None


def init(
    file: Annotated[Path, typer.Option("--file", "-f", help="The file to write.")] = Path("deploy.toml"),
    image: Annotated[str | None, typer.Option(help="The trainer's image, with a tag that never moves.")] = None,
    name: Annotated[str | None, typer.Option(help="The endpoint's name.")] = None,
    pool: Annotated[Items, typer.Option(help="A pool of GPUs; may be repeated.")] = None,
    exclude_type: Annotated[Items, typer.Option(help="A GPU type that is not wanted; may be repeated.")] = None,
    gpu_count: Annotated[int | None, typer.Option(help="GPUs of one worker.")] = None,
    min_cuda: Annotated[str | None, typer.Option(help="Least CUDA version of a machine's driver.")] = None,
    base_model: Annotated[Items, typer.Option(help="A base model to hold at hand; may be repeated.")] = None,
    data_center: Annotated[
        Items, typer.Option(help="Where the volume is, and the workers with it; repeated: one volume in each.")
    ] = None,
    volume_gb: Annotated[
        int | None, typer.Option(help=f"Size of a volume in GB; 0: none. Default: {_VOLUME_GB}.")
    ] = None,
    disk_gb: Annotated[int | None, typer.Option(help="A worker's own disk in GB.")] = None,
    max_workers: Annotated[int | None, typer.Option(help="Most workers.")] = None,
    idle_seconds: Annotated[int | None, typer.Option(help="How long an idle worker is kept.")] = None,
    execution_seconds: Annotated[int | None, typer.Option(help="Longest time of a job.")] = None,
    registry: Annotated[str | None, typer.Option(help="Name of registry credentials at RunPod.")] = None,
    flashboot: Annotated[bool | None, typer.Option(help="RunPod's FlashBoot.")] = None,
    inference: Annotated[
        bool, typer.Option("--inference", help="Also an endpoint that answers with finished adapters.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file, if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write deploy.toml: from these options, and from your answers where a terminal is there to ask."""
    from lora_worker.deployment.template import render_specification
    from lora_worker.errors import DeploymentFileError

    if file.exists() and not force:
        raise refuse(f"{file} is there already: --force overwrites it", EXIT_USAGE)
    asked = _ask if may_ask() and not as_json else None
    if asked and not (pool and data_center):
        _show_offers()
    top: dict[str, Any] = {
        "name": name or _answer(asked, "Name of the endpoint", "lora-trainer"),
        "image": image or _answer(asked, "Image of the trainer (registry/name:tag)", None),
        "base_models": base_model or _answers(asked, "Base models to hold at hand", _default("base_models")),
        "registry": registry,
        "disk_gb": disk_gb,
    }
    if not top["image"]:
        raise refuse("--image is missing: the trainer's image, such as ghcr.io/you/lora-trainer:0.2.0", EXIT_USAGE)
    gpu = {
        "pools": pool or _answers(asked, "Pools of GPUs", _default("pools", "gpu")),
        "excluded_types": exclude_type,
        "count": gpu_count,
        "min_cuda": min_cuda,
    }
    workers = {
        "max": max_workers or _number(asked, "Most workers at the same time", _default("max", "workers")),
        "idle_seconds": idle_seconds,
        "execution_seconds": execution_seconds,
        "flashboot": flashboot,
    }
    values = {
        **_given(top),
        "gpu": _given(gpu),
        "workers": _given(workers),
        "volumes": _volumes(top["name"], data_center, volume_gb, asked),
        **({"inference": {}} if inference else {}),
    }
    try:
        text = render_specification(values, file)
        _write(file, text, force=force)
    except DeploymentFileError as error:
        raise refuse(str(error), EXIT_USAGE) from None
    except OSError as error:
        raise refuse(f"{file} can't be written ({error.strerror or type(error).__name__})") from None
    show({"file": str(file)}, as_json=as_json, text=lambda console: _print_next(file, console))


def _show_offers() -> None:
    """Show the catalog's pools and data centres, by which the questions can be answered; or say why it is not there."""
    import asyncio

    from lora_worker.errors import WorkerError

    try:
        asyncio.run(_look_at_catalog())
    except WorkerError as error:
        say(f"RunPod's catalog can't be shown ({printable(str(error))})")


async def _look_at_catalog() -> None:
    import httpx

    from lora_worker.commands.deploy_views import offers_table
    from lora_worker.deployment.catalog import all_offers
    from lora_worker.deployment.rest import RunPodApi
    from lora_worker.launchers.registry import load_runpod_account

    account = load_runpod_account()
    async with httpx.AsyncClient(timeout=httpx.Timeout(20, connect=10)) as http:
        api = RunPodApi(account.runpod_api_url, account.gpu_cluster_api_key.get_secret_value(), http=http, on_wait=say)
        gpus, places = await api.list_gpu_types(), await api.list_data_centers()
    make_console(stderr=True).print(offers_table(all_offers(gpus)))
    with_volumes = sorted(place.id for place in places if place.id and place.network_volume_types)
    say(f"data centres with volumes: {printable(', '.join(with_volumes[:100]))}")


_Asking = Callable[[str, str | None], str] | None


def _ask(question: str, default: str | None) -> str:
    answer: str = typer.prompt(question, default=default, err=True)
    return answer.strip()


def _answer(asked: _Asking, question: str, default: str | None) -> str:
    return asked(question, default) if asked else default or ""


def _answers(asked: _Asking, question: str, default: tuple[str, ...]) -> list[str]:
    return [item.strip() for item in _answer(asked, f"{question} (comma-separated)", ", ".join(default)).split(",")]


def _number(asked: _Asking, question: str, default: int) -> int:
    while True:
        text = _answer(asked, question, str(default))
        if text.isdecimal() and len(text) < 10:
            return int(text)
        typer.echo("A whole number, please.", err=True)


def _default(key: str, table: str | None = None) -> Any:
    from lora_worker.deployment.specification import Specification
    from lora_worker.deployment.tables import Gpu, Workers

    fields = {None: Specification.model_fields, "gpu": Gpu.model_fields, "workers": Workers.model_fields}[table]
    return fields[key].default


def _volumes(name: str, data_centers: Items, volume_gb: int | None, asked: _Asking) -> list[Mapping[str, Any]]:
    """Return the volumes: one in each data centre. Without a data centre there is none, and each worker downloads."""
    if volume_gb == 0:
        return []
    places = data_centers or _places(asked)
    if not places:
        if volume_gb is not None:
            raise refuse("--volume-gb needs --data-center: a volume is in one data centre, for good", EXIT_USAGE)
        return []
    size = volume_gb or _number(asked, "Size of a volume in GB", _VOLUME_GB)
    names = [f"{name}-models" if len(places) == 1 else f"{name}-models-{place.lower()}" for place in places]
    return [
        {"name": volume, "size_gb": size, "data_center": place} for volume, place in zip(names, places, strict=True)
    ]


def _places(asked: _Asking) -> list[str]:
    question = "Data centres for a network volume each, which keeps base models (comma-separated; empty: no volume)"
    return [place.strip().upper() for place in _answer(asked, question, "").split(",") if place.strip()]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _write(path: Path, text: str, *, force: bool) -> None:
    # With "x" a file that appeared in the meantime is not overwritten.
    with path.open("w" if force else "x", encoding="utf-8") as file:
        file.write(text)


def _print_next(path: Path, console: Console) -> None:
    console.print(f"wrote {path}: look through it, then `lora-worker deploy plan`", soft_wrap=True)
