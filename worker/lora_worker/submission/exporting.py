"""Makes files for other programs of a finished adapter, on this machine.

The adapter is fetched and verified as `download` does. Merging and GGUF are the trainer's work: its own command does
them, in a process of its own, since it imports torch and the two packages know nothing of each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pydantic import ValidationError

from lora_contract.exports import MAX_EXPORT_RECORD_BYTES, ExportForm, ExportRecord
from lora_contract.ollama import MODELFILE_NAME, SAFETENSORS_FAMILIES, architecture_of, modelfile, stop_texts
from lora_contract.words import shorten
from lora_worker.errors import ArgumentError, ExportError
from lora_worker.launchers.registry import hidden_from_trainers
from lora_worker.services import Services
from lora_worker.submission.downloads import Download, download
from lora_worker.submission.tokenizing import is_trainer_installed

ADAPTER_FOLDER = "adapter"
"""Where the adapter itself goes, inside of the folder of a merged or GGUF export."""

_COMMAND = ("-m", "lora_trainer.cli", "export")
_MOST_LINE_CHARACTERS = 500
_CHUNK_BYTES = 1 << 16
_STOP_SECONDS = 10.0
_UNUSED_PREFIXES = ("RUNPOD_", "OTEL_")
"""An export, other than a training, asks nothing of RunPod and sends no traces; these variables may hold keys, too."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AdapterExport:
    """An adapter in its folder, as PEFT and vLLM load it. `note` says why it has no Modelfile, where it has none."""

    adapter: Download
    note: str | None


@dataclass(frozen=True, slots=True)
class FormExport:
    """An export that the trainer made: the fetched adapter, the folder of the result, and its record."""

    adapter: Download
    folder: Path
    record: ExportRecord


async def export_adapter(services: Services, job_id: UUID, folder: Path, say: Say) -> AdapterExport:
    """Fetch a job's adapter into `folder`, and put a Modelfile for Ollama beside it where Ollama takes such adapters.

    Raises: as `lora_worker.submission.downloads.download`.
    """
    fetched = await download(services, job_id, folder, say)
    return AdapterExport(fetched, await asyncio.to_thread(_write_modelfile, folder))


def _write_modelfile(folder: Path) -> str | None:
    """Write the Modelfile; return why there is none."""
    architecture = architecture_of(folder)
    if architecture not in SAFETENSORS_FAMILIES:
        told = f"Ollama imports no adapters of {architecture[:60]} as safetensors" if architecture else (
            "the adapter does not say of which architecture its base is"
        )  # fmt: skip
        return f"There is no Modelfile: {told}. `--as gguf` and `--as merged` make files that Ollama reads."
    remark = "base.gguf is the adapter's base as GGUF; or write the name of the same model at Ollama in its place."
    content = modelfile("./base.gguf", adapter=".", stops=stop_texts(folder), remarks=[remark])
    path = folder / MODELFILE_NAME
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"DIR: {path} can't be written ({error.strerror or type(error).__name__})") from None
    return None


async def export_form(
    services: Services, job_id: UUID, folder: Path, form: ExportForm, say: Say, *, base: str | None
) -> FormExport:
    """Fetch a job's adapter into `folder/adapter`, and have the trainer write `form` to `folder/<form>`.

    `base` names another place of the base than the adapter does: a folder, or a model on the hub.

    Raises:
        ArgumentError: the trainer is not installed here; or as `download`.
        ExportError: the trainer refused or failed; its sentence says why.
        ArtifactError, ServiceError: as `download`.
    """
    if not is_trainer_installed():
        merging = "; `--on-endpoint` has the GPU endpoint merge" if form == "merged" else ""
        raise ArgumentError(
            f"--as {form}: the trainer is not installed here (pip install '.[trainer,gguf]' in the clone){merging}"
        )
    fetched = await download(services, job_id, folder / ADAPTER_FOLDER, say)
    target = folder / form
    record = await _run_trainer(
        [str(fetched.folder), str(target), "--as", form, *(("--base", base) if base else ())], say
    )
    return FormExport(fetched, target, record)


async def _run_trainer(arguments: list[str], say: Say) -> ExportRecord:
    hidden = hidden_from_trainers(os.environ)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *_COMMAND,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            name: value
            for name, value in os.environ.items()
            if name not in hidden and not name.startswith(_UNUSED_PREFIXES)
        },
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        answer, last = await asyncio.gather(_read_answer(process.stdout), _pass_on(process.stderr, say))
        status = await process.wait()
    except BaseException:
        await _stop(process)
        raise
    try:
        if status == 0:
            return ExportRecord.model_validate_json(answer)
    except ValidationError:
        raise ExportError("The trainer that is installed here is another version than the worker.") from None
    raise ExportError(last or f"The trainer ended with {status} and did not say why.")


async def _read_answer(stream: asyncio.StreamReader) -> bytes:
    """Read to the end; no more than a record can have is kept."""
    kept = b""
    while chunk := await stream.read(_CHUNK_BYTES):
        kept += chunk[: MAX_EXPORT_RECORD_BYTES - len(kept)]
    return kept


async def _pass_on(stream: asyncio.StreamReader, say: Say) -> str:
    """Tell each line, cut to a length that people read, and return the last one."""
    rest, last = b"", ""
    while chunk := await stream.read(_CHUNK_BYTES):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        rest = rest[:_MOST_LINE_CHARACTERS]
        for line in filter(None, map(_readable, lines)):
            say(line)
            last = line
    if final := _readable(rest):
        say(final)
    return final or last


def _readable(line: bytes) -> str:
    text = line[: 4 * _MOST_LINE_CHARACTERS].decode(errors="replace").strip()
    return shorten("".join(c if c.isprintable() else "\ufffd" for c in text), _MOST_LINE_CHARACTERS)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the trainer; what it has finished stays, and the same command goes on with it."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
