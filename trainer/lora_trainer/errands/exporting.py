"""Merges an adapter on the endpoint. `python -m lora_trainer.errands.exporting` is the handler's child process.

The adapter is fetched by signed URLs; the base comes from the volume, or is downloaded there; the merged model stays on
the volume, since it has the size of the base. Asked for again after a kill, it goes on behind the last finished file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from pathlib import Path

from huggingface_hub.utils.tqdm import disable_progress_bars

from lora_contract.errands import ErrandResult, ExportPlace, ExportRequest, split_model
from lora_contract.exports import EXPORTS_FOLDER
from lora_trainer.errands.lines import Line, explain, writer
from lora_trainer.errors import VolumeMissingError
from lora_trainer.export.adapter import read_adapter
from lora_trainer.export.merged import export_merged
from lora_trainer.models.bases import Base, BaseModels
from lora_trainer.run.download import download_files
from lora_trainer.run.logs import configure_logging
from lora_trainer.run.orphans import end_with_the_handler
from lora_trainer.run.volume import mounted_volume, naming_full_disks
from lora_trainer.settings import Settings, load_settings

log = logging.getLogger("lora_trainer.errands.exporting")

_SOURCES = ".sources"
"""The folder beside the exports into which the adapters are downloaded."""


def export(request: ExportRequest, settings: Settings) -> ExportPlace:
    """Merge the request's adapter into its base, on the network volume.

    Raises:
        VolumeMissingError: none is mounted: the result would be lost with the container.
        TrainingError: the adapter or the base can't be fetched or read, or they don't fit each other.
    """
    volume = mounted_volume(settings.volume)
    if volume is None:
        raise VolumeMissingError(
            "No network volume is mounted, on which a merged model could stay.",
            "Attach a network volume to the endpoint, or merge where the trainer is installed.",
        )
    target = volume / EXPORTS_FOLDER / request.job_id
    sources = volume / EXPORTS_FOLDER / _SOURCES / request.job_id
    try:
        with naming_full_disks(sources):
            sources.mkdir(parents=True, exist_ok=True)
        asyncio.run(download_files(request.files, sources))
        record = export_merged(sources, _base(request, sources, volume, settings), target, log.info)
    finally:
        shutil.rmtree(sources, ignore_errors=True)
    return ExportPlace(folder=str(target.relative_to(volume)), record=record)


def _base(request: ExportRequest, sources: Path, volume: Path, settings: Settings) -> Base:
    adapter = read_adapter(sources)
    name, revision = split_model(request.base) if request.base else (adapter.base_name, adapter.base_revision)
    bases = BaseModels(volume, trusted=settings.trust_remote_code)
    return bases.complete(bases.find(name, revision))


def main(arguments: list[str]) -> int:
    """Read the request from standard input, merge, and write the result to the given file descriptor."""
    configure_logging()
    disable_progress_bars()
    request = ExportRequest.model_validate_json(sys.stdin.readline())
    end_with_the_handler()
    result = ErrandResult(kind="export")
    try:
        result.export = export(request, load_settings())
    except Exception as error:
        result.error = explain(error, work="export", again="").as_errand_error()
    with os.fdopen(int(arguments[0]), "w", encoding="utf-8") as pipe:
        writer(pipe)(Line(result=result))
    return 0 if result.error is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
