"""The kept log of a run: one text object beside its adapter, which only the secret key reads."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from lora_contract.log_lines import MAX_LOG_BYTES, newest_lines, printable
from lora_contract.protocol import CONTAINER_LOG_NAME
from lora_contract.redaction import redact
from lora_worker.errors import ServiceRefusedError
from lora_worker.storage.artifact_paths import run_folder
from lora_worker.storage.objects import Storage

_MOST_NOTES = 20
_MAX_STORED_BYTES = MAX_LOG_BYTES + 100_000
NOTE_MARK = "# "
"""Begins a line that the worker wrote about the run, and not its container."""


class RunLogs:
    """The kept logs in the bucket for adapters. `secrets` are replaced in whatever is stored."""

    def __init__(self, storage: Storage, bucket: str, secrets: Sequence[str]) -> None:
        self._storage = storage
        self._bucket = bucket
        self._secrets = tuple(secrets)

    async def write(self, user_id: UUID, run_id: UUID, *, notes: Sequence[str], lines: Sequence[str]) -> None:
        """Store the log of a run; an earlier one is replaced. Lines and their size are cut to the limits.

        Args:
            user_id: the job's owner.
            run_id: the run.
            notes: sentences of the worker about the run's end, which come first.
            lines: what the container has printed, already filtered by `lora_contract.log_lines`.

        Raises:
            ServiceError: the storage did not take it.
        """
        marked = [NOTE_MARK + note for note in notes[:_MOST_NOTES]]
        whole = [*marked, *newest_lines(lines)]
        text = "".join(f"{printable(redact(line, self._secrets))}\n" for line in whole)
        path = run_folder(user_id, run_id) + CONTAINER_LOG_NAME
        # Not text/plain: the bucket takes the types of adapters only.
        await self._storage.write(
            self._bucket, path, text.encode(errors="replace"), content_type="application/octet-stream"
        )

    async def remove(self, user_id: UUID, run_id: UUID) -> None:
        """Remove the log of a run. It is no error if none was kept.

        Raises:
            ServiceError: the storage did not do it.
        """
        await self._storage.remove(self._bucket, [run_folder(user_id, run_id) + CONTAINER_LOG_NAME])

    async def read(self, user_id: UUID, run_id: UUID) -> list[str] | None:
        """The lines of a run's log, the worker's notes first; None where none was kept.

        Raises:
            ServiceError: the storage did not answer, or the object is no log that a worker has written.
        """
        path = run_folder(user_id, run_id) + CONTAINER_LOG_NAME
        try:
            content = await self._storage.read(self._bucket, path, max_bytes=_MAX_STORED_BYTES)
        except ServiceRefusedError as error:
            if error.status != 413:
                raise
            return [f"{NOTE_MARK}the stored log is larger than {_MAX_STORED_BYTES} bytes, so no worker has written it"]
        if content is None:
            return None
        return [printable(redact(line, self._secrets)) for line in content.decode(errors="replace").splitlines()]
