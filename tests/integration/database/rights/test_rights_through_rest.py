"""The rights as users meet them: through the REST API and the storage, with real tokens."""

from __future__ import annotations

import httpx
import pytest

from tests.documented import table_under
from tests.integration.database.rights.signed_in import Rest, add
from tests.integration.database.rights.world import NOTHING, PAGE

_UNIT_BYTES = {"MB": 1024**2, "GB": 1024**3}


@pytest.mark.fault(8)
def test_user_cancels_through_rest_as_the_application_does(rest: Rest) -> None:
    wish = {"status": "cancelled", "completed_at": "2026-02-24T12:00:00.000Z", "final_cost": 0}
    path = f"/rest/v1/training_jobs?id=eq.{rest.job}"
    as_rows = {"prefer": "return=representation"}
    assert rest.stranger.patch(path, json=wish, headers=as_rows).json() == []
    assert rest.owner.patch(path, json={**wish, "progress": 100}).status_code == httpx.codes.FORBIDDEN
    assert rest.owner.patch(path, json={"status": "completed"}).status_code == httpx.codes.FORBIDDEN
    (row,) = rest.owner.patch(path, json=wish, headers=as_rows).json()
    assert row["status"] == "cancelled"
    assert rest.owner.patch(path, json=wish, headers=as_rows).json() == []


def test_rest_shows_rows_to_their_owner_only(rest: Rest) -> None:
    for table, column in (("training_jobs", "id"), ("metrics_points", "job_id")):
        path = f"/rest/v1/{table}?select={column}&{column}=eq.{rest.job}"
        assert rest.owner.get(path).json() == [{column: rest.job}]
        assert rest.stranger.get(path).json() == []
        # Where a project granted tables to everybody, policies hide the rows.
        anons = rest.anon.get(path).json()
        assert anons == [] or anons["code"] == "42501"


def test_rest_accepts_only_notifications_of_the_applications_routes(rest: Rest) -> None:
    notice = {"user_id": rest.owner_id, "type": "job_queued", "title": "Queued", "message": "It waits."}
    add(rest.owner, "notifications", **notice)
    refused = [
        rest.owner.post("/rest/v1/notifications", json=notice | {"type": "job_completed"}),
        rest.stranger.post("/rest/v1/notifications", json=notice),
        rest.anon.post("/rest/v1/notifications", json=notice),
    ]
    assert all(answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN} for answer in refused)
    path = f"/rest/v1/notifications?user_id=eq.{rest.owner_id}"
    (read,) = rest.owner.patch(path, json={"read": True}, headers={"prefer": "return=representation"}).json()
    assert read["read"] is True
    assert rest.owner.patch(path, json={"title": "Forged"}).status_code == httpx.codes.FORBIDDEN


def test_rest_refuses_worker_functions_and_tables_to_users(rest: Rest) -> None:
    arguments = {"worker": "w", "max_jobs": 1, "lease_seconds": 60}
    for client in (rest.owner, rest.anon):
        assert client.post("/rest/v1/rpc/claim_training_jobs", json=arguments).is_client_error
        # The local Supabase grants every table to every role once more when it starts; row level security holds.
        seen = client.get("/rest/v1/training_runs")
        assert seen.is_client_error or seen.json() == []
    (job,) = rest.service.get(f"/rest/v1/training_jobs?id=eq.{rest.job}").json()
    assert job["status"] == "queued"


def test_buckets_are_as_documented_and_closed_to_anon(rest: Rest) -> None:
    documented = table_under(PAGE, "Buckets")
    found = {}
    for bucket in rest.service.get("/storage/v1/bucket").json():
        name = bucket["name"]
        if f"`{name}`" not in documented:
            continue
        put = rest.service.post(f"/storage/v1/object/{name}/{rest.owner_id}/probe.json", json={})
        put.raise_for_status()
        seen = rest.anon.post(f"/storage/v1/object/list/{name}", json={"prefix": rest.owner_id, "limit": 10})
        read = rest.anon.get(f"/storage/v1/object/{name}/{rest.owner_id}/probe.json")
        public = rest.anon.get(f"/storage/v1/object/public/{name}/{rest.owner_id}/probe.json")
        written = rest.anon.post(f"/storage/v1/object/{name}/{rest.owner_id}/other.json", json={})
        closed = read.is_error and public.is_error and written.is_error and (seen.is_error or seen.json() == [])
        found[f"`{name}`"] = {
            "public": "yes" if bucket["public"] else "no",
            "largest file": int(bucket["file_size_limit"]),
            "types": set(bucket["allowed_mime_types"]),
            "anon": NOTHING if closed else "open",
        }
        rest.service.request("DELETE", f"/storage/v1/object/{name}", json={"prefixes": [f"{rest.owner_id}/probe.json"]})
    assert found == {
        name: cells | {"largest file": in_bytes(cells["largest file"]), "types": set(cells["types"].split(", "))}
        for name, cells in documented.items()
    }


def in_bytes(size: str) -> int:
    number, unit = size.split()
    return int(number) * _UNIT_BYTES[unit]
