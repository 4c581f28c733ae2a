"""The kept log of a run is bounded, printable and without secrets, when it is written and when it is read."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import pytest

from lora_contract.log_lines import MAX_LOG_BYTES
from lora_worker.errors import ServiceRefusedError
from lora_worker.storage.run_logs import RunLogs
from tests.unit.artifact_stores import MemoryBucket

USER, RUN = UUID(int=1), UUID(int=2)
PATH = f"{USER}/{RUN}/log.txt"


@pytest.fixture
def bucket() -> MemoryBucket:
    return MemoryBucket()


@pytest.fixture
def logs(bucket: MemoryBucket) -> RunLogs:
    return RunLogs(cast(Any, bucket), "lora-models", ("a-configured-key",))


async def test_what_was_written_is_read_with_the_notes_first(logs: RunLogs) -> None:
    await logs.write(USER, RUN, notes=["ended"], lines=["one", "two"])
    assert await logs.read(USER, RUN) == ["# ended", "one", "two"]


async def test_run_without_a_kept_log_has_none(logs: RunLogs) -> None:
    assert await logs.read(USER, RUN) is None


async def test_stored_log_is_bounded_and_clean(logs: RunLogs, bucket: MemoryBucket) -> None:
    dirty = "a-configured-key sb_secret_abcdef \x1b[2J\x00\n€" + "x" * 5000
    await logs.write(USER, RUN, notes=[dirty] * 500, lines=[dirty] * 50_000)
    content = bucket.objects[PATH].decode()
    assert len(content.encode()) < MAX_LOG_BYTES + 30_000
    assert len(content.splitlines()) <= 220
    for hidden in ("a-configured-key", "sb_secret", "\x1b", "\x00"):
        assert hidden not in content


async def test_object_that_somebody_else_wrote_is_cleaned_when_read(logs: RunLogs, bucket: MemoryBucket) -> None:
    bucket.objects[PATH] = b"\xff\x1b[31m a-configured-key\n"
    assert await logs.read(USER, RUN) == [" [secret]"]


async def test_object_that_is_too_large_is_said_to_be_no_log(logs: RunLogs, bucket: MemoryBucket) -> None:
    async def read(*_: Any, **__: Any) -> bytes:
        raise ServiceRefusedError("Storage", "larger", status=413)

    bucket.read = read  # type: ignore[method-assign]
    (line,) = await logs.read(USER, RUN) or []
    assert "no worker has written it" in line
