"""The command `export`: a finished adapter as files for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.terminal import EXIT_USAGE, AsJson, command_group, print_lines, refuse, show, with_services

if TYPE_CHECKING:
    from lora_contract.exports import ExportRecord
    from lora_worker.services import Services

commands = command_group()


class Form(StrEnum):
    """What is made of the adapter."""

    adapter = "adapter"
    merged = "merged"
    gguf = "gguf"


@commands.command()
def export(
    job: Annotated[str, typer.Argument(help="A completed job's id, or a beginning of it.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where the files go; empty: a folder named after the job.")
    ] = None,
    form: Annotated[
        Form,
        typer.Option("--as", help="adapter: for PEFT, vLLM; merged: a whole model; gguf: for llama.cpp, Ollama."),
    ] = Form.adapter,
    base: Annotated[str, typer.Option(help="Base to merge into; empty: the one that the adapter names.")] = "",
    on_endpoint: Annotated[
        bool, typer.Option("--on-endpoint", help="Merge by a job on the GPU endpoint; the model stays on its volume.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make files for other programs of a job's adapter; goes on where it was broken off.

    merged and gguf need the trainer on this machine (no GPU), or --on-endpoint for merged.
    """
    if on_endpoint and (form is not Form.merged or folder is not None):
        raise refuse(
            "--on-endpoint goes with --as merged and without DIR: GGUF is written here, without a GPU", EXIT_USAGE
        )
    if base and form is Form.adapter:
        raise refuse("--base: an adapter is exported as it is; only merged and gguf are made with a base", EXIT_USAGE)
    if base and on_endpoint:
        _check_hub_name(base)

    async def work(services: Services) -> dict[str, Any]:
        from lora_worker.commands.references import find_job

        job_id = await find_job(services.queue, job)
        if on_endpoint:
            return await _on_endpoint(services, job_id, base or None)
        place = folder or Path(f"export-{str(job_id)[:8]}")
        if form is Form.adapter:
            return await _adapter(services, job_id, place)
        return await _by_trainer(services, job_id, place, form, base or None)

    answer = with_services(work)
    show(answer, as_json=as_json, text=lambda console: print_lines(console, _lines(answer)))


def _check_hub_name(base: str) -> None:
    from lora_contract.errands import split_model

    try:
        split_model(base)
    except ValueError as error:
        raise refuse(f"--base: {error}; the endpoint does not see this machine's folders", EXIT_USAGE) from None


async def _adapter(services: Services, job_id: Any, folder: Path) -> dict[str, Any]:
    from lora_worker.submission.exporting import export_adapter

    done = await export_adapter(services, job_id, folder, _to_stderr)
    return {
        **_answer(job_id, "adapter", str(folder)),
        "files": [{"name": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in done.adapter.files],
        "note": done.note,
    }


async def _by_trainer(services: Services, job_id: Any, folder: Path, form: Form, base: str | None) -> dict[str, Any]:
    from lora_worker.submission.exporting import export_form

    done = await export_form(services, job_id, folder, "gguf" if form is Form.gguf else "merged", _to_stderr, base=base)
    return {**_answer(job_id, form.value, str(done.folder)), **_record(done.record)}


async def _on_endpoint(services: Services, job_id: Any, base: str | None) -> dict[str, Any]:
    from lora_worker.commands.deploy_prefetch import Teller
    from lora_worker.submission.endpoint_export import export_on_endpoint, fetching

    place = await export_on_endpoint(services, job_id, base=base, seen=Teller().tell)
    answer = _answer(job_id, "merged", None) | _record(place.record)
    return {
        **answer,
        "volume": place.volume_id,
        "volume_folder": place.folder,
        "note": fetching(place, (services.places.errands or services.places.default).launcher.guide),
    }


def _answer(job_id: Any, form: str, directory: str | None) -> dict[str, Any]:
    return {
        "job_id": str(job_id),
        "form": form,
        "directory": directory,
        "base_model": None,
        "base_revision": None,
        "adapter_sha256": None,
        "modules": None,
        "files": [],
        "volume": None,
        "volume_folder": None,
        "note": None,
    }


def _record(record: ExportRecord) -> dict[str, Any]:
    return {
        "base_model": record.base_model,
        "base_revision": record.base_revision,
        "adapter_sha256": record.adapter_sha256,
        "modules": record.modules,
        "files": [file.model_dump() for file in record.files],
    }


def _lines(answer: dict[str, Any]) -> list[str]:
    size = sum(file["bytes"] for file in answer["files"])
    where = answer["directory"] or f"{answer['volume_folder']} of the endpoint's volume"
    lines = [f"{len(answer['files'])} files, {size / 1e9:,.3f} GB, in {where}"]
    if answer["modules"]:
        lines.append(f"{answer['modules']:,} modules of {answer['base_model']} carry the adapter")
    return lines + ([answer["note"]] if answer["note"] else [])


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)
