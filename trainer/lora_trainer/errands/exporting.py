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
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from huggingface_hub.utils.tqdm import disable_progress_bars

from lora_contract.errands import ErrandResult, ExportPlace, ExportRequest, split_model
from lora_contract.exports import EXPORTS_FOLDER
from lora_trainer.errands.lines import Line, explain, writer
from lora_trainer.errors import VolumeMissingError
from lora_trainer.export.adapter import Adapter, read_adapter
from lora_trainer.export.merged import export_merged
from lora_trainer.models.bases import Base, BaseModels
from lora_trainer.run.download import download_files
from lora_trainer.run.logs import configure_logging
from lora_trainer.run.orphans import end_with_the_handler
from lora_trainer.run.volume import mounted_volume, naming_full_disks
from lora_trainer.settings import Settings, load_settings

log = logging.getLogger("lora_trainer.errands.exporting")

_SOURCES = ".sources"
"""The folder beside the exports into which the adapters are downloaded, for each errand into a folder of its own."""
_STALE_SECONDS = 8 * 86_400.0
"""How long a downloaded adapter stays after its errand was killed: RunPod lets no job run for more than 7 days."""
_MOST_SWEPT = 1000
"""At how many of those folders an errand looks."""


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
    with _own_folder(volume / EXPORTS_FOLDER / _SOURCES, request.job_id) as sources:
        asyncio.run(download_files(request.files, sources))
        adapter = read_adapter(sources)
        record = export_merged(adapter, _base(request, adapter, volume, settings), target, log.info)
    return ExportPlace(folder=str(target.relative_to(volume)), record=record)


@contextmanager
def _own_folder(parent: Path, job_id: str) -> Iterator[Path]:
    """A new folder in `parent`, which is removed at the end; so are those that killed errands have left long ago.

    Two errands of one job may run at the same time. In one folder, the second to begin would overwrite the weights that
    the first is reading, and remove them when it is refused.
    """
    with naming_full_disks(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{job_id}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    oldest = time.time() - _STALE_SECONDS
    for folder in islice(parent.iterdir(), _MOST_SWEPT):
        # Another container may be removing the same folder.
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _base(request: ExportRequest, adapter: Adapter, volume: Path, settings: Settings) -> Base:
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
