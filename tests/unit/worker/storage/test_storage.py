"""The meaning of Storage's answers: hosted Storage puts the real status into the body of a 400."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import respx

from lora_worker.errors import ObjectMissingError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.storage.objects import Storage

URL = "https://p.supabase.co"


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    async with httpx.AsyncClient() as http:
        yield Storage(URL, "sb_secret_x", http=http)


def refusal(status: str, error: str, message: str = "") -> dict[str, str]:
    return {"statusCode": status, "error": error, "message": message or error}


async def read(storage: Storage, http_status: int, body: Any) -> bytes:
    with respx.mock(base_url=URL) as api:
        api.get("/storage/v1/object/bucket/a/b.jsonl").respond(http_status, json=body)
        async with storage.stream("bucket", "a/b.jsonl") as chunks:
            return b"".join([chunk async for chunk in chunks])


MISSING = [
    (400, refusal("404", "Bucket not found")),
    (400, refusal("404", "not_found", "Object not found")),
    (400, {"code": "NoSuchBucket", "message": "Bucket not found"}),
    (404, {"statusCode": "404", "code": "NoSuchKey", "error": "NoSuchKey", "message": "Object not found"}),
    (400, refusal("400", "InvalidKey", "Invalid key: a/signature.jsonl")),
    (400, refusal("400", "Invalid Input", "The object name contains invalid characters")),
    (404, "text"),
]
KEY_REFUSED = [
    (400, refusal("403", "Unauthorized", "signature verification failed")),
    (400, refusal("403", "Unauthorized", "Invalid Compact JWS")),
    (400, refusal("400", "InvalidJWT", '"exp" claim timestamp check failed')),
    (400, refusal("400", "Error", "headers must have required property 'authorization'")),
    (401, {"message": "Invalid API key"}),
    (403, refusal("403", "AccessDenied")),
]
PASSING = [
    (400, refusal("500", "Internal")),
    (400, refusal("429", "too_many_connections")),
    (400, refusal("423", "ResourceLocked")),
    (400, refusal("503", "DatabaseReadOnly")),
    (544, refusal("544", "DatabaseTimeout")),
    (503, "text"),
    (429, {}),
]


@pytest.mark.parametrize(("http_status", "body"), MISSING, ids=str)
async def test_missing_bucket_or_file_and_invalid_path_are_missing_objects(
    storage: Storage, http_status: int, body: Any
) -> None:
    with pytest.raises(ObjectMissingError, match=r"bucket/a/b\.jsonl is not in the storage"):
        await read(storage, http_status, body)


@pytest.mark.parametrize(("http_status", "body"), KEY_REFUSED, ids=str)
async def test_refused_key_is_not_reported_as_a_missing_object(storage: Storage, http_status: int, body: Any) -> None:
    with pytest.raises(ServiceRefusedError, match="refused the key") as caught:
        await read(storage, http_status, body)
    assert not isinstance(caught.value, ObjectMissingError)


@pytest.mark.parametrize(("http_status", "body"), PASSING, ids=str)
async def test_transient_error_inside_a_400_is_retried(storage: Storage, http_status: int, body: Any) -> None:
    with pytest.raises(ServiceUnavailableError):
        await read(storage, http_status, body)


@pytest.mark.parametrize(("http_status", "body"), KEY_REFUSED, ids=str)
async def test_refused_key_does_not_mean_that_a_manifest_is_missing(
    storage: Storage, http_status: int, body: Any
) -> None:
    with respx.mock(base_url=URL) as api:
        api.get("/storage/v1/object/info/bucket/a/b.jsonl").respond(http_status, json=body)
        with pytest.raises(ServiceRefusedError, match="refused the key"):
            await storage.size("bucket", "a/b.jsonl")


async def test_size_in_a_missing_bucket_is_none(storage: Storage) -> None:
    with respx.mock(base_url=URL) as api:
        api.get("/storage/v1/object/info/bucket/a/b.jsonl").respond(400, json=refusal("404", "Bucket not found"))
        assert await storage.size("bucket", "a/b.jsonl") is None


async def test_refused_upload_is_not_reported_as_a_missing_object(storage: Storage) -> None:
    with respx.mock(base_url=URL) as api:
        api.post("/storage/v1/object/bucket/a").respond(400, json=refusal("415", "invalid_mime_type"))
        with pytest.raises(ServiceRefusedError) as caught:
            await storage.write("bucket", "a", b"x", content_type="text/plain")
    assert caught.value.status == 415


async def test_bucket_name_stays_one_segment_of_the_path(storage: Storage) -> None:
    with respx.mock(base_url=URL) as api:
        route = api.get(url__regex=r".*").respond(404)
        with pytest.raises(ObjectMissingError):
            async with storage.stream("../../rest/v1", "secrets"):
                pass
        assert route.calls.last.request.url.raw_path == b"/storage/v1/object/..%2F..%2Frest%2Fv1/secrets"


@pytest.mark.parametrize("path", ["/a/b.jsonl", "a//b.jsonl", "//a/b.jsonl/"])
async def test_redundant_slashes_are_not_sent(storage: Storage, path: str) -> None:
    with respx.mock(base_url=URL) as api:
        api.get("/storage/v1/object/bucket/a/b.jsonl").respond(200, content=b"x")
        api.get("/storage/v1/object/info/bucket/a/b.jsonl").respond(200, json={"size": 1})
        api.post("/storage/v1/object/sign/bucket/a/b.jsonl").respond(200, json={"signedURL": "/x?token=t"})
        assert await storage.read("bucket", path, max_bytes=1) == b"x"
        assert await storage.size("bucket", path) == 1
        assert await storage.sign_download("bucket", path, seconds=1) == (
            f"{URL}/storage/v1/object/sign/bucket/a/b.jsonl?token=t"
        )


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("größe.jsonl", b"gr%C3%B6%C3%9Fe.jsonl"),
        ("100%.jsonl", b"100%25.jsonl"),
        ("a%41.jsonl", b"a%2541.jsonl"),
        ("a#b.jsonl", b"a%23b.jsonl"),
        ("[a].jsonl", b"%5Ba%5D.jsonl"),
        ("a&b+c (1).jsonl", b"a&b+c%20(1).jsonl"),
    ],
)
async def test_every_call_addresses_the_same_object_by_a_name(storage: Storage, name: str, raw: bytes) -> None:
    with respx.mock(base_url=URL) as api:
        read = api.get(url__regex=r".*/object/bucket/.*").respond(200, content=b"x")
        info = api.get(url__regex=r".*/object/info/.*").respond(200, json={"size": 1})
        sign = api.post(url__regex=r".*/object/sign/.*").respond(200, json={"signedURL": "/x?token=t"})
        await storage.read("bucket", name, max_bytes=1)
        await storage.size("bucket", name)
        signed = await storage.sign_download("bucket", name, seconds=1)
    paths = [route.calls.last.request.url.raw_path for route in (read, info, sign)]
    assert [path.rsplit(b"/", 1)[1] for path in paths] == [raw] * 3
    assert signed.endswith(f"/{raw.decode()}?token=t")


@pytest.mark.parametrize("path", ["a/../b", "./a", "..", "", "///"])
async def test_invalid_object_path_never_leaves_the_bucket(storage: Storage, path: str) -> None:
    assert await storage.size("bucket", path) is None
    with pytest.raises(ObjectMissingError):
        await storage.sign_download("bucket", path, seconds=1)


async def test_answer_that_is_not_from_storage_is_retried(storage: Storage) -> None:
    with respx.mock(base_url=URL) as api:
        route = api.get("/storage/v1/object/info/bucket/a")
        route.side_effect = [httpx.Response(200, text="<html>"), httpx.Response(200, json={"size": 7})]
        assert await storage.size("bucket", "a") == 7


@pytest.mark.parametrize(
    ("status", "expected"), [(413, False), (404, None), (400, None), (500, None)], ids=lambda value: str(value)
)
async def test_too_large_size_is_detected_without_sending_data(
    storage: Storage, status: int, expected: bool | None
) -> None:
    with respx.mock(base_url=URL) as api:
        asked = api.post("/storage/v1/upload/resumable").respond(status)
        assert await storage.takes_size("bucket", 10**9) is expected
    assert asked.calls.last.request.headers["upload-length"] == "1000000000"
    assert asked.calls.last.request.content == b""


async def test_accepted_size_leaves_no_started_upload_behind(storage: Storage) -> None:
    with respx.mock(base_url=URL) as api:
        where = "https://inner.host/upload/resumable/aWQ"
        api.post("/storage/v1/upload/resumable").respond(201, headers={"location": where})
        ended = api.delete("/storage/v1/upload/resumable/aWQ").respond(204)
        assert await storage.takes_size("bucket", 10**9) is True
    assert ended.called


async def test_copy_overwrites_even_where_storage_refuses_to(storage: Storage) -> None:
    with respx.mock(base_url=URL) as api:
        copied = api.post("/storage/v1/object/copy")
        copied.side_effect = [
            httpx.Response(400, json=refusal("409", "Duplicate", "The resource already exists")),
            httpx.Response(200, json={"Key": "bucket/b"}),
        ]
        removed = api.delete("/storage/v1/object/bucket").respond(200, json=[])
        await storage.copy("bucket", "a", "b")
    assert removed.calls.last.request.read() == b'{"prefixes":["b"]}'
    assert copied.calls.last.request.headers["x-upsert"] == "true"


async def test_copy_reports_a_missing_source_and_waits_for_a_lock(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with respx.mock(base_url=URL) as api:
        copied = api.post("/storage/v1/object/copy")
        copied.side_effect = [
            httpx.Response(400, json=refusal("503", "LockTimeout")),
            httpx.Response(400, json=refusal("404", "NoSuchKey", "Object not found")),
        ]
        with pytest.raises(ObjectMissingError):
            await storage.copy("bucket", "a", "b")
    assert copied.call_count == 2


async def test_a_read_from_the_middle_asks_for_that_part(storage: Storage) -> None:
    with respx.mock(base_url=URL) as api:
        route = api.get("/storage/v1/object/bucket/a/b.bin").respond(206, content=b"lf")
        async with storage.stream("bucket", "a/b.bin", start=2) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == b"lf"
        assert route.calls.last.request.headers["range"] == "bytes=2-"


@pytest.mark.parametrize(
    ("status", "body"), [(200, {"content": b"half"}), (416, {"json": refusal("416", "InvalidRange")})]
)
async def test_a_part_that_is_not_sent_is_refused(storage: Storage, status: int, body: Any) -> None:
    """A whole object, appended to the part that is here already, would be another file."""
    with respx.mock(base_url=URL) as api:
        api.get("/storage/v1/object/bucket/a/b.bin").respond(status, **body)
        with pytest.raises(ServiceRefusedError) as caught:
            async with storage.stream("bucket", "a/b.bin", start=2):
                pass
        assert caught.value.status == 416


async def test_a_stream_is_sent_with_its_type_and_length(storage: Storage) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"zeb"
        yield b"ra"

    with respx.mock(base_url=URL) as api:
        route = api.post("/storage/v1/object/bucket/a/b.jsonl").respond(json={})
        await storage.write_stream("bucket", "a/b.jsonl", chunks(), content_type="application/json", byte_count=5)
        headers = route.calls.last.request.headers
        assert (headers["content-type"], headers["content-length"]) == ("application/json", "5")
        assert "transfer-encoding" not in headers
