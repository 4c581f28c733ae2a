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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lora_trainer.errors import (
    BaseModelMismatchError,
    BaseModelUnknownError,
    BaseModelUnreachableError,
    DiskFullError,
)
from lora_trainer.run.volume import naming_full_disks

_MOUNTS = (Path("/runpod-volume"), Path("/workspace"))
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SNAPSHOT = re.compile(r"/models--(?P<owner>[\w.-]+?)--(?P<model>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})/?$")
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "README.md"]
_WEIGHTS = ["*.safetensors"]
_LEFT_OUT = ["consolidated*", "original/*"]
"""Files not to download: a second copy of the weights, for the code of the model's authors."""
_INDEX_NAME = "model.safetensors.index.json"
_SPARE_BYTES = 2 << 30
"""A download must leave so much room on the volume, for checkpoints and the adapter."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine. `folder` holds at least its configuration and tokenizer."""

    name: str
    revision: str | None
    """The commit on the hub; None for a folder that is no snapshot of the hub."""
    folder: Path
    trusted: bool = False
    """Whether code that comes with the model may run."""


class BaseModels:
    """Finds base models on this machine and on the hub.

    Downloads go to `volume`. `trusted` names the models that may run code of their own.
    """

    def __init__(self, volume: Path, *, trusted: Sequence[str] = ()) -> None:
        volumes = (volume, *_MOUNTS)
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
        base = self._find_locally(name, revision) or self._download(name, revision, _SMALL_FILES)
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
        return base if has_weights(base.folder) else self._download(base.name, base.revision, _WEIGHTS)

    def _find_locally(self, name: str, revision: str | None) -> Base | None:
        trusted = name in self._trusted
        if folder := self._plain_folder(name):
            if snapshot := _SNAPSHOT.search(str(folder)):
                return _from_snapshot(snapshot, folder, revision, trusted=trusted)
            if revision is not None:
                raise BaseModelMismatchError(
                    f"The base model {name} is a plain folder here, so its revision can't be checked.",
                    "Leave base_revision out, or remove the folder so that the revision is downloaded.",
                )
            return Base(Path(name).name if Path(name).is_absolute() else name, None, folder, trusted)
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
        # The hub's library downloads into partial files and renames them, so a download that broke off resumes.
        with FileLock(lock), _translating_hub_errors(name, revision), naming_full_disks(self._folder):
            if patterns == _WEIGHTS:
                self._check_room(name, revision)
            path = snapshot_download(
                name, revision=revision, cache_dir=self._folder, allow_patterns=patterns, ignore_patterns=_LEFT_OUT
            )
        return Base(name, Path(path).name, Path(path), name in self._trusted)

    def _check_room(self, name: str, revision: str | None) -> None:
        needed = download_bytes(name, revision, self._folder)
        free = shutil.disk_usage(self._folder).free
        if needed + _SPARE_BYTES > free:
            raise DiskFullError(
                f"The base model {name} needs {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free on the volume.",
                "Make the network volume larger, or remove models that are not used any more.",
            )


def download_bytes(name: str, revision: str | None, cache: Path) -> int:
    """How many bytes of the model's weights are missing in `cache`."""
    files = snapshot_download(
        name,
        revision=revision,
        cache_dir=cache,
        allow_patterns=_WEIGHTS,
        ignore_patterns=_LEFT_OUT,
        dry_run=True,
    )
    return sum(file.file_size or 0 for file in files if file.will_download)


def has_weights(folder: Path) -> bool:
    """Whether the folder has all weight files: those that the index names, or the only one."""
    index = folder / _INDEX_NAME
    if index.is_file():
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        return all((folder / name).is_file() for name in names)
    return (folder / "model.safetensors").is_file()


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
            name, revision=revision, cache_dir=cache, allow_patterns=_SMALL_FILES, local_files_only=True
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
            "The next attempt goes on with the download where it stopped.",
        ) from None
