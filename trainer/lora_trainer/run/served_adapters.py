"""The folder from which vLLM serves adapters by name: whose adapter lies where, and how it changes under a reader.

See `lora_contract.serving` for its layout. Many containers write here at the same time, and servers read. So an adapter
is written under a name that begins with a dot, and takes its place in one step; an adapter in the way changes places
with it. Where the file system can't exchange two folders, the name is missing between two renames, for milliseconds.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lora_contract.protocol import ADAPTER_FILES
from lora_contract.serving import MARKER_NAME, MAX_MARKER_BYTES, Marker
from lora_trainer.errors import NotServedError
from lora_trainer.run.exchange import exchange
from lora_trainer.run.files import sha256_of
from lora_trainer.run.removed_adapter import write_zeros

_MAX_FOLDERS = 20_000
_STALE_SECONDS = 3600.0
"""How long what begins with a dot stays: a server may still be reading what was replaced."""
_REMOVED_SECONDS = 7 * 86_400.0
"""How long zeros lie in the place of a removed adapter: longer than a server's worker lives."""

IsReplaced = Callable[[Marker], bool]
"""Whether a folder with this marker may be replaced."""


@dataclass(frozen=True)
class ServedAdapters:
    """The folder. `least_free_bytes` must be free on its disk after an adapter was written."""

    folder: Path
    least_free_bytes: int = 0

    def prepare(self) -> None:
        """Make the folder, if it is not there. A server of vLLM does not start without it.

        Raises:
            OSError: it can't be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # it may be another's
            self.folder.chmod(0o755)

    def place(
        self, adapter: Path, names: Sequence[str], *, job_id: str, run_id: str, is_current: Callable[[], bool]
    ) -> str:
        """Put a job's adapter under the first of `names` that no other job has, and return that name.

        An adapter that the job has there is replaced. `is_current` is asked just before: an execution that has been
        replaced itself must not replace what its successor has put there.

        Raises:
            NotServedError: there is no room, or others have all names, or the execution is not the job's any more.
            OSError: the folder can't be written.
        """
        with self._written(adapter) as (new, sha256):
            self._mark(new, Marker(job_id=job_id, run_id=run_id, adapter_sha256=sha256))
            if not is_current():
                raise NotServedError("Another execution has taken over the job.")
            for name in names:
                if self._install(new, name, lambda marker: marker.job_id == job_id):
                    break
            else:
                raise NotServedError(f"Others have the names {' and '.join(names)} in the folder of served adapters.")
        for other in (self.folder / each for each in names if each != name):
            marker = self._marker_of(other)
            if marker is not None and marker.job_id == job_id:
                self._take_away(other, {marker.run_id})
        return name

    def remove(self, run_ids: set[str]) -> dict[str, str]:
        """Remove what these runs have put here, aliases included; what could not be removed, as {run id: why}.

        Where there are more folders than it looks at, that includes each run of which it found nothing. What lies in
        the place of adapters that were removed long ago goes, too.
        """
        wrong: dict[str, str] = {}
        found: set[str] = set()
        self._sweep()
        folders = self._folders()
        for folder in folders:
            marker = self._marker_of(folder)
            if marker is None:
                continue
            if marker.removed_at is not None and marker.removed_at < time.time() - _REMOVED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            elif marker.run_id in run_ids:
                found.add(marker.run_id)
                try:
                    self._take_away(folder, run_ids)
                except OSError as error:
                    wrong[marker.run_id] = f"{folder.name} can't be removed ({type(error).__name__})"
        if len(folders) == _MAX_FOLDERS:
            not_found = (
                f"An adapter to remove is not in the {_MAX_FOLDERS:,} folders that were looked at; there may be more."
            )
            wrong |= dict.fromkeys(run_ids - found, not_found)
        return wrong

    def set_alias(self, alias: str, name: str) -> None:
        """Let an alias hold a copy of the adapter `name`, exactly as it is. Does nothing where it does so already.

        Raises:
            NotServedError: there is no such adapter, no room, or the alias' folder is none of an alias.
            OSError: the folder can't be written.
        """
        source = self._marker_of(self.folder / name)
        if source is None or source.removed_at is not None:
            raise NotServedError(f"No adapter {name} is served.")
        marker = source.model_copy(update={"alias_of": name})
        if self._marker_of(self.folder / alias) == marker:
            return
        with self._written(self.folder / name) as (new, sha256):
            if sha256 != source.adapter_sha256:
                raise NotServedError(f"The adapter {name} was replaced at this moment.", "Ask for the same again.")
            self._mark(new, marker)
            if not self._install(new, alias, lambda present: present.alias_of is not None):
                raise NotServedError(f"The folder {alias} holds something else than an alias.")

    def remove_alias(self, alias: str) -> None:
        """Remove an alias, if it is there.

        Raises:
            NotServedError: the folder is none of an alias.
            OSError: it can't be removed.
        """
        folder = self.folder / alias
        marker = self._marker_of(folder)
        if marker is not None and marker.alias_of is not None:
            self._take_away(folder, {marker.run_id})
        elif folder.exists():
            raise NotServedError(f"The folder {alias} holds something else than an alias.")

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _written(self, adapter: Path) -> Iterator[tuple[Path, str]]:
        """A copy of the adapter in a folder of its own, and its weights' sha256; what is left of it goes at the end."""
        self.prepare()
        self._sweep()
        needed = sum((adapter / name).stat().st_size for name in ADAPTER_FILES)
        if shutil.disk_usage(self.folder).free < needed + self.least_free_bytes:
            raise NotServedError(
                f"There is no room for {needed / 1e6:.0f} MB in the folder of served adapters.",
                "Delete adapters that nobody calls, or make the network volume larger.",
            )
        new = self._hidden("new")
        new.mkdir(mode=0o755)
        try:
            for name in ADAPTER_FILES:
                shutil.copyfile(adapter / name, new / name)
                _finish(new / name)
            yield new, sha256_of(new / ADAPTER_FILES[1])
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _mark(self, folder: Path, marker: Marker) -> None:
        path = folder / MARKER_NAME
        path.write_text(marker.model_dump_json(exclude_none=True), encoding="utf-8")
        _finish(path)
        # A umask may keep others from reading, and a server is another container.
        folder.chmod(0o755)

    def _install(self, new: Path, name: str, is_replaced: IsReplaced) -> bool:
        """Give the folder `new` this name, and say whether it has it: not where somebody else's is in the way."""
        target = self.folder / name
        try:
            new.rename(target)
        except OSError:
            if not os.path.lexists(target):
                raise
        else:
            return True
        old = self._swap(new, target, is_replaced)
        if old is not None:
            # A server may be reading it, so it goes with the next sweep.
            os.utime(old)
        return old is not None

    def _swap(self, new: Path, target: Path, is_replaced: IsReplaced) -> Path | None:
        """Put `new` in the place of `target`; where the latter is now. None: it is somebody else's, and stays."""
        marker = self._marker_of(target)
        if marker is None or not is_replaced(marker):
            return None
        old = self._hidden("old")
        if exchange(new, target):
            new.rename(old)
        else:
            target.rename(old)
            new.rename(target)
        # Another container may have put its own there since the marker was read.
        marker = self._marker_of(old)
        if marker is not None and is_replaced(marker):
            return old
        target.rename(new)
        old.rename(target)
        return None

    # ── removing ────────────────────────────────────────────────────────────────────────────────────

    def _take_away(self, folder: Path, run_ids: set[str]) -> None:
        """Remove an adapter of these runs, and leave zeros in its place where a server may have called it."""
        marker = self._marker_of(folder)
        if marker is None or marker.run_id not in run_ids or marker.removed_at is not None:
            return
        if folder.name.startswith("."):
            shutil.rmtree(folder)
            return
        new = self._hidden("removed")
        new.mkdir(mode=0o755)
        try:
            write_zeros(folder, new)
            for name in ADAPTER_FILES:
                _finish(new / name)
            self._mark(new, marker.model_copy(update={"removed_at": time.time()}))
            old = self._swap(new, folder, lambda present: present.run_id in run_ids)
        except (OSError, ValueError):
            # What can't be read can't be served, and where there is no room nothing must stay because of that.
            old = self._hidden("old")
            folder.rename(old)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        if old is not None:
            shutil.rmtree(old)

    def _sweep(self) -> None:
        """Remove what is left of containers that ended while they wrote, and what was replaced a while ago."""
        oldest = time.time() - _STALE_SECONDS
        for folder in self._folders():
            # Another container may be removing the same folder.
            with suppress(FileNotFoundError):
                if folder.name.startswith(".") and folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────

    def _hidden(self, kind: str) -> Path:
        return self.folder / f".{kind}-{uuid.uuid4().hex}"

    def _folders(self) -> list[Path]:
        """The folders there, a bounded number of them."""
        folders: list[Path] = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and len(folders) < _MAX_FOLDERS:
                    folders.append(Path(entry.path))
        return folders

    def _marker_of(self, folder: Path) -> Marker | None:
        """The folder's marker; None where it is nobody's, is a link, or has one that can't be read."""
        if folder.is_symlink():
            return None
        try:
            with (folder / MARKER_NAME).open("rb") as file:
                return Marker.model_validate_json(file.read(MAX_MARKER_BYTES))
        except (OSError, ValueError):
            return None


def _finish(path: Path) -> None:
    """Write a file's content to the disk, and let every container read it."""
    path.chmod(0o644)
    with path.open("rb") as file:
        os.fsync(file.fileno())
