"""Fills the network volume with base models. `python -m lora_trainer.errands.prefetch` is the handler's child process.

All sizes are asked of the hub before the first byte is downloaded: a volume that is too small is known at once. When a
download broke off and the same model is asked for again, only the files are downloaded that were not finished.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils.tqdm import disable_progress_bars

from lora_contract.errands import ErrandResult, PrefetchedModel, PrefetchProgress, PrefetchRequest, split_model
from lora_contract.words import counted
from lora_trainer.errands.lines import Line, explain, writer
from lora_trainer.errors import VolumeMissingError
from lora_trainer.models.bases import Base, BaseModels, Download, has_weights
from lora_trainer.run.logs import configure_logging
from lora_trainer.run.orphans import end_with_the_handler
from lora_trainer.run.volume import find_volume, mounted_volume
from lora_trainer.settings import load_settings

log = logging.getLogger("lora_trainer.errands.prefetch")

Report = Callable[[PrefetchProgress], None]


@dataclass
class _Wanted:
    text: str
    """As the request names it."""
    base: Base
    download: Download | None = None
    """None: nothing is missing."""


@dataclass
class Prefetch:
    """One prefetch. `has_volume` is false where nothing outlives the container; then nothing is downloaded."""

    bases: BaseModels
    report: Report
    has_volume: bool
    interval_seconds: float
    done: list[PrefetchedModel] = field(default_factory=list)
    """The models that are finished, also after an error."""

    def run(self, models: Sequence[str]) -> None:
        """Bring each model to the volume, unless this machine has it.

        Raises:
            VolumeMissingError: a model is missing, and no network volume is mounted.
            DiskFullError: the volume is too small for all of them.
            TrainingError: a model can't be found or downloaded.
        """
        wanted = [self._look_up(text) for text in dict.fromkeys(models)]
        missing = [model for model in wanted if model.download is not None]
        if missing:
            named = f"The base model {missing[0].text}" if len(missing) == 1 else counted(len(missing), "base model")
            self.bases.check_room(named, sum(model.download.missing_bytes for model in missing if model.download))
        for model in wanted:
            self.done.append(self._bring(model))

    def _look_up(self, text: str) -> _Wanted:
        name, revision = split_model(text)
        found = self.bases.find_locally(name, revision)
        if found is not None and has_weights(found.folder):
            return _Wanted(text, found)
        if not self.has_volume:
            raise VolumeMissingError(
                f"The base model {text} is not in this machine's caches, and no network volume is mounted: it would be "
                "lost with the container.",
                "Attach a network volume to the endpoint, or let RunPod cache the model.",
            )
        base = found or self.bases.find(name, revision)
        return _Wanted(text, base, self.bases.measure(base.name, base.revision))

    def _bring(self, model: _Wanted) -> PrefetchedModel:
        base, download = model.base, model.download
        if download is None:
            on_volume = self.has_volume and self.bases.is_on_volume(base)
            return PrefetchedModel(
                model=base.name,
                revision=base.revision,
                bytes=_folder_bytes(base.folder),
                seconds=0,
                status="present" if on_volume else "cached",
            )
        begun = time.monotonic()
        with self._reporting(model.text, base.name, download):
            complete = self.bases.complete(base)
        return PrefetchedModel(
            model=complete.name,
            revision=complete.revision,
            bytes=_folder_bytes(complete.folder),
            seconds=round(time.monotonic() - begun, 3),
            status="downloaded",
        )

    @contextmanager
    def _reporting(self, text: str, name: str, download: Download) -> Iterator[None]:
        """While this context is open, report every `interval_seconds` what has arrived."""
        at_first = self.bases.received_bytes(name)
        had = download.total_bytes - download.missing_bytes
        ended = threading.Event()

        def tell() -> None:
            arrived = self.bases.received_bytes(name) - at_first
            done = min(had + max(arrived, 0), download.total_bytes)
            self.report(PrefetchProgress(model=text, done_bytes=done, total_bytes=download.total_bytes))

        def repeat() -> None:
            while not ended.wait(self.interval_seconds):
                tell()

        tell()
        thread = threading.Thread(target=repeat, name="prefetch-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(arguments: list[str]) -> int:
    """Read the request from standard input, download, and write the result to the given file descriptor."""
    configure_logging()
    disable_progress_bars()
    request = PrefetchRequest.model_validate_json(sys.stdin.readline())
    end_with_the_handler()
    settings = load_settings()
    volume = mounted_volume(settings.volume)
    with os.fdopen(int(arguments[0]), "w", encoding="utf-8") as pipe:
        write = writer(pipe)
        prefetch = Prefetch(
            BaseModels(volume or find_volume(settings.volume)),
            lambda progress: write(Line(progress=progress)),
            has_volume=volume is not None,
            interval_seconds=max(settings.progress_seconds, 0.2),
        )
        result = ErrandResult(kind="prefetch")
        try:
            prefetch.run(request.models)
        except Exception as error:
            result.error = explain(error, work="download", again=" models").as_errand_error()
        result.models = prefetch.done
        write(Line(result=result))
    return 0 if result.error is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
