"""The local Supabase answers as the official clients expect, and recovers from the chaos suite's faults."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from supabase import AsyncClient, AsyncClientOptions, acreate_client

from sandbox.processes import port_answers
from sandbox.supabase import LocalSupabase
from sandbox.supabase.project import Project
from tests.conftest import SANDBOX
from tests.processes.waiting import until

MODELS = "lora-models"

# supabase-py hands its own sub-clients arguments that these deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:The '(timeout|verify)' parameter is deprecated")


@pytest.fixture
def user(supabase: Project) -> str:
    return supabase.create_user(f"{uuid4().hex}@example.com")


@pytest.fixture
def service(supabase: Project) -> Iterator[httpx.Client]:
    with supabase.client() as client:
        yield client


def dataset_row(user: str) -> dict[str, object]:
    return {
        "user_id": user,
        "name": "sample",
        "storage_path": f"{user}/{uuid4()}/sample.jsonl",
        "file_name": "sample.jsonl",
        "file_size": 3,
    }


@pytest.fixture
async def official(supabase: Project) -> AsyncIterator[AsyncClient]:
    async with httpx.AsyncClient() as transport:
        key = supabase.service_role_jwt or supabase.secret_key
        yield await acreate_client(supabase.url, key, AsyncClientOptions(httpx_client=transport))


async def test_the_official_client_works_with_a_legacy_key(official: AsyncClient, user: str) -> None:
    inserted = await official.table("datasets").insert(dataset_row(user)).execute()
    assert inserted.data[0]["created_at"][10] == "T"
    version = await official.rpc("worker_schema_version").execute()
    assert isinstance(version.data, int)


async def test_objects_come_back_byte_for_byte(official: AsyncClient, user: str) -> None:
    content = os.urandom(3_000_000)
    bucket = official.storage.from_(MODELS)
    await bucket.upload(f"{user}/a.bin", content, {"content-type": "application/octet-stream"})
    assert await bucket.download(f"{user}/a.bin") == content
    signed = await bucket.create_signed_url(f"{user}/a.bin", 60)
    async with httpx.AsyncClient() as stranger:
        answer = await stranger.get(signed["signedURL"])
    assert answer.content == content


async def test_stored_json_that_resembles_an_answer_is_not_rewritten(official: AsyncClient, user: str) -> None:
    content = b'{"at": "2026-11-23 17:46:14+00", "signedUrl": "/storage/v1/x"}'
    bucket = official.storage.from_(MODELS)
    grant = await bucket.create_signed_upload_url(f"{user}/manifest.json")
    async with httpx.AsyncClient() as stranger:
        json_type = {"content-type": "application/json"}
        put = await stranger.put(grant["signed_url"], content=content, headers=json_type)
    assert put.status_code == httpx.codes.OK
    assert await bucket.download(f"{user}/manifest.json") == content


def test_bucket_accepts_only_its_mime_types(service: httpx.Client, user: str) -> None:
    answer = service.post(
        f"/storage/v1/object/{MODELS}/{user}/page.html", content=b"<p>", headers={"content-type": "text/html"}
    )
    assert answer.is_client_error


def test_user_sees_only_their_own_rows(supabase: Project, service: httpx.Client, user: str) -> None:
    other = supabase.create_user(f"{uuid4().hex}@example.com")
    rows = [dataset_row(user), dataset_row(other)]
    service.post("/rest/v1/datasets", json=rows).raise_for_status()
    with supabase.client(user) as client:
        seen = client.get("/rest/v1/datasets?select=user_id").json()
    assert seen == [{"user_id": user}]


def test_request_without_a_key_sees_nothing(supabase: Project) -> None:
    assert httpx.get(f"{supabase.url}/rest/v1/datasets").status_code == httpx.codes.UNAUTHORIZED


def test_recovers_when_postgres_restarts_crashes_or_drops_clients(
    local_supabase: LocalSupabase,
) -> None:
    with local_supabase.client() as client:

        def answers() -> bool:
            return client.post("/rest/v1/rpc/worker_schema_version", json={}).status_code == httpx.codes.OK

        def answers_again() -> bool:
            # Losing a busy connection may end or block the REST server; a platform would restart it.
            local_supabase.revive_rest()
            if local_supabase.rest_hangs():
                local_supabase.restart_rest()
            return answers()

        assert answers()
        local_supabase.postgres.restart()
        until(answers_again, "REST answers after a restart")
        local_supabase.postgres.restart("crash")
        until(answers_again, "REST answers after a crash")
        assert local_supabase.postgres.kill_backends() >= 1
        until(answers_again, "REST answers with new connections")
        local_supabase.stop_rest()
        assert client.get("/rest/v1/datasets").status_code == httpx.codes.BAD_GATEWAY
        local_supabase.restart_rest()
        assert answers()


def test_stopping_leaves_no_open_port_and_no_file(tmp_path: Path) -> None:
    # A folder of its own: in the other one, tests beside this one start and stop theirs.
    (tmp_path / "cache").symlink_to(SANDBOX / "cache")
    with LocalSupabase.start(tmp_path) as project:
        while_running = set(tmp_path.iterdir())
        ports = [project.postgres.port, httpx.URL(project.url).port or 0]
        assert all(port_answers(port) for port in ports)
    assert not any(port_answers(port) for port in ports)
    assert len(while_running - set(tmp_path.iterdir())) == 1
    assert {left.name for left in tmp_path.iterdir()} == {"cache"}
