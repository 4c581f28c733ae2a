"""The sandbox's Storage answers as a real server did; the expected answers were recorded there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest

from lora_contract.grants import lifetime_seconds
from sandbox.supabase import LocalSupabase
from tests.conftest import SANDBOX

MODELS = "lora-models"
JSON_TYPE = {"content-type": "application/json", "x-upsert": "true"}


@pytest.fixture(scope="module")
def project() -> Iterator[LocalSupabase]:
    """A self-hosted project: upload URLs of 60 seconds, and a limit below its buckets'."""
    with LocalSupabase.start(SANDBOX, upload_url_seconds=60, file_size_limit=1_000_000) as started:
        yield started


@pytest.fixture
def service(project: LocalSupabase) -> Iterator[httpx.Client]:
    with project.client() as client:
        yield client


@pytest.fixture
def folder() -> str:
    return uuid4().hex


def put(service: httpx.Client, name: str, content: bytes = b"0123456789", **headers: str) -> httpx.Response:
    return service.post(f"/storage/v1/object/{MODELS}/{name}", content=content, headers={**JSON_TYPE, **headers})


def signed(service: httpx.Client, name: str, seconds: int = 60) -> str:
    answer = service.post(f"/storage/v1/object/sign/{MODELS}/{name}", json={"expiresIn": seconds})
    return f"{service.base_url}/storage/v1{answer.raise_for_status().json()['signedURL']}"


def signed_upload(service: httpx.Client, name: str) -> str:
    answer = service.post(f"/storage/v1/object/upload/sign/{MODELS}/{name}", headers={"x-upsert": "true"})
    return f"{service.base_url}/storage/v1{answer.raise_for_status().json()['url']}"


def inner(answer: httpx.Response) -> tuple[int, str, str]:
    """Outer status, inner status and code."""
    body = answer.json()
    return answer.status_code, body["statusCode"], body["code"]


def with_claims(project: LocalSupabase, url: str, **changes: Any) -> str:
    """The signed URL with other claims, signed by the project itself."""
    base, _, token = url.partition("?token=")
    claims = jwt.decode(token, project.jwt_secret, algorithms=["HS256"]) | changes
    return f"{base}?token={jwt.encode(claims, project.jwt_secret, algorithm='HS256')}"


def test_refusal_is_http_400_with_the_real_status_in_the_body(service: httpx.Client, folder: str) -> None:
    assert inner(service.get(f"/storage/v1/object/{MODELS}/{folder}/none")) == (400, "404", "NoSuchKey")
    assert inner(service.get("/storage/v1/object/no-bucket/none")) == (400, "404", "NoSuchBucket")
    html = put(service, f"{folder}/a.html", **{"content-type": "text/html"})
    assert inner(html) == (400, "415", "InvalidMimeType")


def test_size_limit_of_the_project_applies_beside_the_buckets(service: httpx.Client, folder: str) -> None:
    too_large = put(service, f"{folder}/large.json", b"x" * 1_000_001)
    assert inner(too_large) == (400, "413", "EntityTooLarge")
    by_url = httpx.put(signed_upload(service, f"{folder}/large.json"), content=b"x" * 1_000_001, headers=JSON_TYPE)
    assert inner(by_url) == (400, "413", "EntityTooLarge")


@pytest.mark.parametrize(("length", "status"), [(1_000_000, 201), (1_000_001, 413)])
def test_resumable_upload_reveals_the_size_limit_without_data(service: httpx.Client, length: int, status: int) -> None:
    headers = {
        "tus-resumable": "1.0.0",
        "upload-length": str(length),
        "upload-metadata": "bucketName bG9yYS1tb2RlbHM=,objectName dXBsb2Fkcy9wcm9iZQ==",
    }
    begun = service.post("/storage/v1/upload/resumable", headers=headers)
    assert begun.status_code == status
    if status == 201:
        assert service.delete(begun.headers["location"], headers={"tus-resumable": "1.0.0"}).status_code == 204


def test_upload_urls_expire_as_the_project_is_configured(
    project: LocalSupabase, service: httpx.Client, folder: str
) -> None:
    url = signed_upload(service, f"{folder}/a.json")
    assert lifetime_seconds(url) == 60
    assert httpx.put(url, content=b"{}", headers=JSON_TYPE).status_code == 200
    over = httpx.put(with_claims(project, url, exp=1), content=b"{}", headers=JSON_TYPE)
    assert inner(over) == (400, "400", "InvalidJWT")
    assert "exp" in over.json()["message"]


def test_tampered_url_and_url_of_another_object_differ_in_error(
    project: LocalSupabase, service: httpx.Client, folder: str
) -> None:
    put(service, f"{folder}/a.json")
    for url, send in (
        (signed(service, f"{folder}/a.json"), httpx.get),
        (signed_upload(service, f"{folder}/a.json"), lambda to: httpx.put(to, content=b"{}", headers=JSON_TYPE)),
    ):
        assert send(url).status_code == 200
        tampered = send(url[:-6] + ("A" if url[-6] != "A" else "B") + url[-5:])
        assert inner(tampered) == (400, "400", "InvalidJWT")
        assert "exp" not in tampered.json()["message"]
        assert inner(send(url.replace("/a.json", "/b.json"))) == (400, "400", "InvalidSignature")
        assert inner(send(with_claims(project, url, exp=1))) == (400, "400", "InvalidJWT")


def test_signed_url_of_a_deleted_object_answers_not_found(service: httpx.Client, folder: str) -> None:
    put(service, f"{folder}/a.json")
    url = signed(service, f"{folder}/a.json")
    service.request("DELETE", f"/storage/v1/object/{MODELS}", json={"prefixes": [f"{folder}/a.json"]})
    assert inner(httpx.get(url)) == (400, "404", "NoSuchKey")


@pytest.mark.parametrize(
    "name",
    ["gr%C3%B6%C3%9Fe.json", "%F0%9F%98%80.json", "100%25.json", "a%23.json", "%5Ba%5D.json", "~a", "a%5Cb"],
)
def test_invalid_object_name_can_be_signed_but_not_read(service: httpx.Client, folder: str, name: str) -> None:
    url = signed_upload(service, f"{folder}/{name}")
    assert inner(httpx.put(url, content=b"{}", headers=JSON_TYPE)) == (400, "400", "InvalidKey")
    assert inner(put(service, f"{folder}/{name}")) == (400, "400", "InvalidKey")


def test_object_name_with_question_mark_has_no_usable_signed_url(service: httpx.Client, folder: str) -> None:
    assert put(service, f"{folder}/a%3Fb.json").status_code == 200
    assert inner(httpx.get(signed(service, f"{folder}/a%3Fb.json"))) == (400, "400", "InvalidSignature")


@pytest.mark.parametrize("path", ["/{}/a.json", "{}//a.json"])
def test_path_with_extra_slashes_is_another_object(service: httpx.Client, folder: str, path: str) -> None:
    put(service, f"{folder}/a.json")
    assert service.get(f"/storage/v1/object/{MODELS}/{folder}/a.json").status_code == 200
    assert inner(service.get(f"/storage/v1/object/{MODELS}/{path.format(folder)}"))[1] == "404"


@pytest.mark.parametrize(
    ("header", "expected"),
    [("bytes=0-3", b"0123"), ("bytes=4-", b"456789"), ("bytes=-2", b"89"), ("bytes=8-100", b"89")],
)
def test_range_request_answers_206(service: httpx.Client, folder: str, header: str, expected: bytes) -> None:
    put(service, f"{folder}/a.json")
    answer = httpx.get(signed(service, f"{folder}/a.json"), headers={"range": header})
    assert (answer.status_code, answer.content) == (206, expected)
    assert answer.headers["content-range"].endswith("/10")


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=5-4", "bytes=a-b", "bytes=-"])
def test_range_beyond_the_end_answers_416(service: httpx.Client, folder: str, header: str) -> None:
    put(service, f"{folder}/a.json")
    answer = httpx.get(signed(service, f"{folder}/a.json"), headers={"range": header})
    assert inner(answer) == (416, "416", "InvalidRange")


def test_list_covers_one_folder_and_at_most_1500_objects(
    project: LocalSupabase, service: httpx.Client, folder: str
) -> None:
    for name in ("b.json", "a.json", "sub/x.json", "sub/y.json"):
        put(service, f"{folder}/{name}")

    def listed(**asked: Any) -> list[dict[str, Any]]:
        answer = service.post(f"/storage/v1/object/list/{MODELS}", json={"prefix": folder, **asked})
        rows: list[dict[str, Any]] = answer.raise_for_status().json()
        return rows

    assert [(row["name"], row["id"] is None) for row in listed()] == [
        ("a.json", False),
        ("b.json", False),
        ("sub", True),
    ]
    assert [row["name"] for row in listed(limit=1, offset=1)] == ["b.json"]
    with project.postgres.connect() as connection:
        connection.execute(
            "insert into storage.objects (bucket_id, name)"
            " select %s, %s || '/many/' || n from generate_series(1, 1600) n",
            (MODELS, folder),
        )
    assert len(listed(prefix=f"{folder}/many", limit=5000)) == 1500
    assert len(listed(prefix=f"{folder}/many")) == 100


@pytest.mark.parametrize("rule", ["*/*", "*", "application/j*"])
def test_allowed_mime_types_match_exactly_or_by_family(
    project: LocalSupabase, service: httpx.Client, folder: str, rule: str
) -> None:
    bucket = uuid4().hex
    made = {"id": bucket, "name": bucket, "public": False, "allowed_mime_types": [rule]}
    service.post("/storage/v1/bucket", json=made).raise_for_status()
    refused = service.post(f"/storage/v1/object/{bucket}/a.json", content=b"{}", headers=JSON_TYPE)
    assert inner(refused) == (400, "415", "InvalidMimeType")


def test_copy_overwrites_an_object_only_on_request(service: httpx.Client, folder: str) -> None:
    put(service, f"{folder}/a.json", b"1")
    put(service, f"{folder}/b.json", b"2")
    body = {"bucketId": MODELS, "sourceKey": f"{folder}/a.json", "destinationKey": f"{folder}/b.json"}
    assert inner(service.post("/storage/v1/object/copy", json=body)) == (400, "409", "KeyAlreadyExists")
    service.post("/storage/v1/object/copy", json=body, headers={"x-upsert": "true"}).raise_for_status()
    assert service.get(f"/storage/v1/object/{MODELS}/{folder}/b.json").content == b"1"
    assert inner(service.post("/storage/v1/object/copy", json={**body, "destinationKey": "ß"}))[2] == "InvalidKey"
