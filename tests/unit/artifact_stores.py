"""A bucket in memory that reports every call to the test and can be changed during a call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from lora_worker.errors import ObjectMissingError
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.publication import ArtifactStore

RUN_ID = "6f1f5a70-0000-4000-8000-000000000001"
PATHS = ArtifactPaths("user/run/", f"uploads/{RUN_ID}/")


class MemoryBucket:
    """Objects by name. `before(call, path)` runs before each call."""

    def __init__(self, **objects: bytes) -> None:
        self.objects: dict[str, bytes] = dict(objects)
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda call, path: None

    def _note(self, call: str, path: str) -> None:
        self.calls.append((call, path))
        self.before(call, path)

    def _find(self, path: str) -> bytes:
        if path not in self.objects:
            raise ObjectMissingError("Supabase Storage", f"{path} is not in the storage", status=404)
        return self.objects[path]

    async def size(self, bucket: str, path: str) -> int | None:
        self._note("size", path)
        return len(self.objects[path]) if path in self.objects else None

    async def read(self, bucket: str, path: str, *, max_bytes: int) -> bytes | None:
        self._note("read", path)
        return self.objects.get(path)

    @asynccontextmanager
    async def stream(self, bucket: str, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        self._note("stream", path)
        content = self._find(path)

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        yield chunks()

    async def copy(self, bucket: str, source: str, target: str) -> None:
        self._note("copy", source)
        self.objects[target] = self._find(source)

    async def write(self, bucket: str, path: str, content: bytes, *, content_type: str) -> None:
        self._note("write", path)
        self.objects[path] = content

    async def remove(self, bucket: str, paths: Sequence[str]) -> None:
        for path in paths:
            self._note("remove", path)
            self.objects.pop(path, None)

    async def write_stream(self, bucket: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        self._note("write_stream", path)
        self.objects[path] = b"".join([chunk async for chunk in chunks])


def store_of(bucket: MemoryBucket, paths: ArtifactPaths = PATHS, *, sha256_max_bytes: int = 1 << 20) -> ArtifactStore:
    """The run's paths in the bucket, under a lease that is held."""
    return ArtifactStore(cast(Any, bucket), "lora-models", paths, sha256_max_bytes, require_lease=lambda: None)
