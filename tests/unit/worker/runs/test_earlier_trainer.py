"""Files that a container names by address are copied completely or not at all, within limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from lora_worker.errors import ArtifactError, ServiceRefusedError
from lora_worker.runs.outcomes.results import LegacyResult
from lora_worker.runs.steps import earlier_trainer
from lora_worker.runs.steps.earlier_trainer import Bounds, copy_files
from lora_worker.storage.public_web import PublicTransport
from tests.unit.artifact_stores import RUN_ID, MemoryBucket, store_of

BASE = "http://files:80"


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Answers requests to the trainer's host with a function of the request."""

    def serve(handler: Callable[[httpx.Request], Any]) -> None:
        def client(trusted: tuple[str, ...]) -> httpx.AsyncClient:
            return httpx.AsyncClient(transport=PublicTransport(trusted, inner=httpx.MockTransport(handler)))

        monkeypatch.setattr(earlier_trainer, "public_client", client)

    return serve


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None:
        return None

    monkeypatch.setattr("tenacity.asyncio._portable_async_sleep", sleep)


def streamed(content: bytes) -> httpx.Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    return httpx.Response(200, content=chunks())


async def copied(bucket: MemoryBucket, files: dict[str, str], **bounds: Any) -> list[str]:
    legacy = LegacyResult(files=files, metadata={"base_model": "b" * 10_000, "steps_completed": 10**30})
    trusted: dict[str, Any] = {"trusted_hosts": ("files:80",), **bounds}
    manifest = await copy_files(legacy, store_of(bucket), Bounds(**trusted), run_id=RUN_ID, job_id="job")
    return [file.path for file in manifest.files]


async def test_files_are_copied_with_the_manifest_last(answered: Callable[..., None]) -> None:
    answered(lambda request: streamed(request.url.path.encode()))
    bucket = MemoryBucket()
    files = {"out/a.json": f"{BASE}/a", "größe.bin": f"{BASE}/b"}
    assert sorted(await copied(bucket, files)) == ["a.json", "gr=C3=B6=C3=9Fe.bin"]
    assert bucket.objects["user/run/a.json"] == b"/a"
    assert [call for call in bucket.calls if call[0] == "write"] == [bucket.calls[-1]]
    summary = json.loads(bucket.objects["user/run/manifest.json"])["summary"]
    assert len(summary["base_model"]) == 200
    assert summary["total_steps"] is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({name: f"{BASE}/a"}, "can't be stored")
        for name in ("", ".", "..", "a/..", "/", "manifest.json", "x/manifest.json", "a" * 201, "ß" * 150)
    ]
    + [
        ({"a/x": f"{BASE}/a", "b/x": f"{BASE}/b"}, "two files x"),
        ({str(number): f"{BASE}/a" for number in range(51)}, "51 files"),
        ({"a": "http://elsewhere/a"}, "is not an https address"),
        ({"a": "https://127.0.0.1/a"}, "public"),
        ({"a": "https://[fd00::1]/a"}, "public"),
        ({"a": "nothing"}, "could not be fetched|https|not a URL"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_unacceptable_files_fail_without_a_request(
    answered: Callable[..., None], files: dict[str, str], words: str
) -> None:
    asked: list[httpx.Request] = []
    answered(lambda request: asked.append(request) or streamed(b"x"))
    bucket = MemoryBucket()
    with pytest.raises(ArtifactError, match=words) as caught:
        await copied(bucket, files)
    assert asked == []
    assert bucket.objects == {}
    assert "://" not in str(caught.value)


async def test_endless_files_are_read_up_to_a_limit(answered: Callable[..., None]) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    answered(lambda request: httpx.Response(200, content=endless()))
    bucket = MemoryBucket()
    with pytest.raises(ArtifactError, match="larger than an adapter may be"):
        await copied(bucket, {"a": f"{BASE}/a"}, max_bytes=10 << 20)
    assert sent <= (10 << 20) + (2 << 20)
    assert bucket.objects == {}


async def test_size_limit_covers_all_files_and_all_retries(answered: Callable[..., None]) -> None:
    answered(lambda request: streamed(b"x" * 600))
    with pytest.raises(ArtifactError, match="larger than an adapter may be"):
        await copied(MemoryBucket(), {"a": f"{BASE}/a", "b": f"{BASE}/b"}, max_bytes=1000)


async def test_time_limit_ends_a_download_that_never_answers(answered: Callable[..., None]) -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    answered(hang)
    with pytest.raises(ArtifactError, match=r"within 0 seconds|within 1 seconds"):
        await copied(MemoryBucket(), {"a": f"{BASE}/a"}, max_seconds=0.05)


async def test_interrupted_source_is_retried_and_then_given_up(answered: Callable[..., None]) -> None:
    tries = 0

    def fail(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        raise httpx.ReadError("broke")

    answered(fail)
    with pytest.raises(ArtifactError, match="could not be fetched"):
        await copied(MemoryBucket(), {"a": f"{BASE}/a"})
    assert tries == 3


@pytest.mark.parametrize(("status", "kind"), [(400, ArtifactError), (409, ArtifactError), (413, ServiceRefusedError)])
async def test_file_refused_by_the_storage_is_not_fetched_again(
    answered: Callable[..., None], status: int, kind: type[Exception]
) -> None:
    tries = 0

    def serve(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        return streamed(b"x")

    bucket = MemoryBucket()

    def refuse(call: str, path: str) -> None:
        raise ServiceRefusedError("Supabase Storage", "refused", status=status)

    answered(serve)
    bucket.before = refuse
    with pytest.raises(kind):
        await copied(bucket, {"a": f"{BASE}/a"})
    assert tries == 1
