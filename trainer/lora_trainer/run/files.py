"""What is done with single files everywhere in the trainer: small ones are written whole, large ones are summed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, as hexadecimal digits.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a crash leaves either the old content or the new, never a part of it.

    Two executions of the same job may write it at the same moment, because RunPod may deliver a job twice. The content
    of the one that finishes last remains.
    """
    # Each writer has a temporary file of its own. If they shared one, the first to finish would rename it while the
    # other still writes.
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f"{path.name}.", suffix=".part", delete=False
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
