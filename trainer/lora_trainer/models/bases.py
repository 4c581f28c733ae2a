"""Finds the base model that a job names, and never another: on the volume, in a cache, or on the hub.

The places are tried in this order: a folder, if the name is a path; `<volume>/models/<name>`; Hugging Face caches on
the volume and elsewhere; the hub. Downloads go to `<volume>/huggingface-cache/hub`, where RunPod keeps its cached
models, too. Environment variables such as `MODEL_PATH` are ignored: they have caused adapters to be trained for the
wrong model.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from httpx2 import HTTPError
from huggingface_hub import DryRunFileInfo, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lora_contract.names import base_model_name
from lora_trainer.errors import (
    BaseModelMismatchError,
    BaseModelUnknownError,
    BaseModelUnreachableError,
    DiskFullError,
)
from lora_trainer.models.copies_on_volume import free_disk
from lora_trainer.run.volume import MOUNTS, naming_full_disks

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SNAPSHOT = re.compile(r"/models--(?P<owner>[\w.-]+?)--(?P<model>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})/?$")
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "README.md"]
_ALL_FILES = [*_SMALL_FILES, "*.safetensors"]
_LEFT_OUT = ["consolidated*", "original/*"]
"""Files not to download: a second copy of the weights, for the code of the model's authors."""
INDEX_NAME = "model.safetensors.index.json"
_SPARE_BYTES = 2 << 30
"""A download must leave so much room on the volume, for checkpoints and the adapter."""

_STALE_SECONDS = 600
"""Nobody writes to a partial file any more that was not written to for so long: the hub's library gives up before."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine. `folder` holds at least its configuration and tokenizer."""

    name: str
    revision: str | None
    """The commit on the hub; None for a folder that is no snapshot of the hub."""
    folder: Path
    trusted: bool = False
    """Whether code that comes with the model may run."""


@dataclass(frozen=True)
class Download:
    """The sizes of a download: of all files of the model, and of what is not there yet."""

    total_bytes: int
    missing_bytes: int


class BaseModels:
    """Finds base models on this machine and on the hub.

    Downloads go to `volume`. `trusted` names the models that may run code of their own.
    """

    def __init__(self, volume: Path, *, trusted: Sequence[str] = ()) -> None:
        volumes = (volume, *MOUNTS)
        self._volume = volume
        self._trusted = frozenset(trusted)
        self._plain = [place / "models" for place in volumes]
        self._caches = [*(place / "huggingface-cache" / "hub" for place in volumes), Path(HF_HUB_CACHE)]
        self._folder = self._caches[0]

    def find(self, name: str, revision: str | None) -> Base:
        """The model with its configuration and tokenizer, which are downloaded if this machine lacks them.

        Raises:
            BaseModelUnknownError: there is no such model or revision, or it needs a token.
            BaseModelUnreachableError: the hub doesn't answer.
            BaseModelMismatchError: the model's folder on this machine can't be that revision.
            DiskFullError: there is no room for the download.
        """
        base = self.find_locally(name, revision) or self._download(name, revision, _SMALL_FILES)
        if not (base.folder / "config.json").is_file():
            raise BaseModelUnknownError(
                f"The base model {name} has no config.json, so it is not a transformers model.",
                "Choose a repository with safetensors weights, not GGUF or an adapter.",
            )
        return base

    def complete(self, base: Base) -> Base:
        """The same model with all its weights, which are downloaded if this machine lacks them.

        Raises: as `find`.
        """
        if has_weights(base.folder):
            return base
        completed = self._download(base.name, base.revision, _ALL_FILES)
        if not has_weights(completed.folder):
            raise BaseModelUnknownError(
                f"The base model {base.name} has no safetensors weights.",
                "Choose a repository with safetensors weights, not GGUF or PyTorch's older format.",
            )
        return completed

    def measure(self, name: str, revision: str | None) -> Download:
        """What `complete` would download, asked of the hub.

        Raises: as `find`, except `DiskFullError`.
        """
        with _translating_hub_errors(name, revision):
            files = files_of(name, revision, self._folder)
        total = sum(file.file_size or 0 for file in files)
        missing = sum(file.file_size or 0 for file in files if file.will_download)
        return Download(total, missing)

    def received_bytes(self, name: str) -> int:
        """How many bytes of the model are in the volume's cache, partial files included. Grows while it downloads."""
        sizes = []
        for file in self._blobs(name).glob("*"):
            with suppress(FileNotFoundError):  # a partial file that was finished just now has another name
                sizes.append(file.stat().st_size)
        return sum(sizes)

    def is_on_volume(self, base: Base) -> bool:
        """Whether the model's folder is on the volume, and not in the image or the host's cache."""
        return base.folder.is_relative_to(self._volume)

    def check_room(self, models: str, missing_bytes: int) -> None:
        """Make sure that the volume has room for a download. `models` names what is downloaded.

        Quantised copies of models make room where there is too little: they can be made again.

        Raises:
            DiskFullError: it has not.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        free_disk(self._volume, missing_bytes, spare_bytes=_SPARE_BYTES)
        free = shutil.disk_usage(self._folder).free
        if missing_bytes + _SPARE_BYTES > free:
            raise DiskFullError(
                f"{models} needs {missing_bytes / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free on the volume, of "
                f"which {_SPARE_BYTES / 1e9:,.1f} GB are kept for trainings.",
                "Make the network volume larger, or remove models that are not used any more.",
            )

    def _remove_stale_parts(self, name: str) -> None:
        """Remove the partial files of killed processes, which the hub's library neither resumes nor removes."""
        newest = time.time() - _STALE_SECONDS
        for part in self._blobs(name).glob("*.incomplete"):
            with suppress(FileNotFoundError):
                if part.stat().st_mtime < newest:
                    part.unlink()

    def _blobs(self, name: str) -> Path:
        return self._folder / f"models--{name.replace('/', '--')}" / "blobs"

    def find_locally(self, name: str, revision: str | None) -> Base | None:
        """The model with its configuration and tokenizer, if this machine has them; None if it has not.

        Raises:
            BaseModelUnknownError: the name can't be a model's.
            BaseModelMismatchError: the model's folder on this machine can't be that revision.
        """
        trusted = name in self._trusted
        if folder := self._plain_folder(name):
            if snapshot := _SNAPSHOT.search(str(folder)):
                return _from_snapshot(snapshot, folder, revision, trusted=trusted)
            if revision is not None:
                raise BaseModelMismatchError(
                    f"The base model {name} is a plain folder here, so its revision can't be checked.",
                    "Leave base_revision out, or remove the folder so that the revision is downloaded.",
                )
            return Base(base_model_name(name), None, folder, trusted)
        if not _HUB_NAME.fullmatch(name):
            raise BaseModelUnknownError(
                f"There is no base model {name!r:.100}: it is neither a folder here nor a name like "
                "organisation/model.",
                "Write the name as on huggingface.co.",
            )
        found = [folder for cache in self._caches if (folder := _cached(cache, name, revision))]
        if not found:
            return None
        # A download to one volume may have broken off while another volume has the complete model.
        folder = next(filter(has_weights, found), found[0])
        return Base(name, folder.name, folder, trusted)

    def _plain_folder(self, name: str) -> Path | None:
        roots = [Path()] if Path(name).is_absolute() else self._plain
        return next((root / name for root in roots if (root / name / "config.json").is_file()), None)

    def _download(self, name: str, revision: str | None, patterns: list[str]) -> Base:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = self._folder / f".{name.replace('/', '--')}.lock"
        # The hub's library downloads into partial files and renames them. Of a download that broke off, whole files are
        # kept; a partial one is begun anew, since its name is unique to the process that wrote it.
        with FileLock(lock), _translating_hub_errors(name, revision), naming_full_disks(self._folder):
            self._remove_stale_parts(name)
            if patterns == _ALL_FILES:
                self.check_room(f"The base model {name}", self.measure(name, revision).missing_bytes)
            path = snapshot_download(
                name, revision=revision, cache_dir=self._folder, allow_patterns=patterns, ignore_patterns=_LEFT_OUT
            )
        return Base(name, Path(path).name, Path(path), name in self._trusted)


def files_of(name: str, revision: str | None, cache: Path) -> list[DryRunFileInfo]:
    """The files of a model that a training reads, with their sizes, and whether `cache` lacks them."""
    return snapshot_download(
        name,
        revision=revision,
        cache_dir=cache,
        allow_patterns=_ALL_FILES,
        ignore_patterns=_LEFT_OUT,
        dry_run=True,
    )


def has_weights(folder: Path) -> bool:
    """Whether the folder has all weight files: those that the index names, or the only one."""
    return all(file.is_file() for file in weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """The weight files that a model's folder must have."""
    index = folder / INDEX_NAME
    if not index.is_file():
        return [folder / "model.safetensors"]
    return sorted({folder / name for name in json.loads(index.read_bytes())["weight_map"].values()})


def licence_of(base: Base) -> str | None:
    """The licence that the model's README names; None if it names none."""
    card = base.folder / "README.md"
    if not card.is_file():
        return None
    found = re.search(r"^license:\s*(\S+)", card.read_text(errors="replace")[:4000], re.MULTILINE)
    return found[1] if found else None


def _from_snapshot(snapshot: re.Match[str], folder: Path, revision: str | None, *, trusted: bool) -> Base:
    """The model of a folder in a Hugging Face cache; its path contains the model's name and commit."""
    name, commit = f"{snapshot['owner']}/{snapshot['model']}", snapshot["commit"]
    if revision not in {None, commit}:
        raise BaseModelMismatchError(
            f"The base model's folder holds another revision of {name} than {revision!r:.100}.",
            "Leave base_revision out, or write the name as on huggingface.co instead of a path.",
        )
    return Base(name, commit, folder, trusted)


def _cached(cache: Path, name: str, revision: str | None) -> Path | None:
    """The model's folder in a Hugging Face cache; None if the cache lacks it or is not there."""
    if not cache.is_dir():
        return None
    try:
        path = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache,
            allow_patterns=_SMALL_FILES,
            # Without these, the library would miss files that were left out of the download, and find nothing.
            ignore_patterns=_LEFT_OUT,
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, OSError):
        return None
    return Path(path) if (Path(path) / "config.json").is_file() else None


@contextmanager
def _translating_hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """While this context is open, turn exceptions of the hub's library into ours, which say what to do."""
    try:
        yield
    except GatedRepoError:
        raise BaseModelUnknownError(
            f"The base model {name} is gated.",
            "Accept its licence on huggingface.co and set HF_TOKEN on the endpoint.",
        ) from None
    except RevisionNotFoundError:
        raise BaseModelUnknownError(f"The base model {name} has no revision {revision!r:.100}.") from None
    except RepositoryNotFoundError:
        raise BaseModelUnknownError(
            f"There is no base model {name} on the hub, or it is private.",
            "Check the name; for a private model set HF_TOKEN on the endpoint.",
        ) from None
    except (HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError):
        raise BaseModelUnreachableError(
            f"The base model {name} could not be downloaded: the hub does not answer.",
            "The next attempt downloads only the files that are missing.",
        ) from None
