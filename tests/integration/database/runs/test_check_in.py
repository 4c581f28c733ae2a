"""The fence: which launch and which execution may train, and what a container may say of itself."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.database.rows import Database


def test_fence_admits_one_launch_and_its_newest_execution(db: Database) -> None:
    _, token = db.launched_run("ext-1")
    first, second, third = str(uuid4()), str(uuid4()), str(uuid4())

    def check_in(external: str, execution: str) -> str:
        return db.call("check_in_run", token, external, execution)["reason"]

    assert check_in("ext-1", first) == "ok"
    assert check_in("ext-2", second) == "superseded"
    assert check_in("ext-1", third) == "ok"
    assert check_in("ext-1", first) == "superseded"
    assert check_in("ext-1", third) == "ok"
    assert db.call("check_in_run", "wrong" * 12, "ext-1", third) == {"may_train": False, "reason": "unknown_token"}
    assert db.call("request_upload", token, first, [{"path": "a"}])["ok"] is False
    assert db.call("upload_grant", token, first)["granted"] is False
    strays = db.call("stray_launches", 10)
    assert [stray["external_job_id"] for stray in strays] == ["ext-2"]


_FILE = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "wrong",
    [
        1,
        "a",
        {"path": "a"},
        _FILE | {"name": 1},
        _FILE | {"path": None},
        _FILE | {"path": ""},
        _FILE | {"bytes": -1},
        _FILE | {"bytes": 1.5},
        _FILE | {"bytes": "1"},
        _FILE | {"bytes": 1e30},
        _FILE | {"sha256": "0" * 63},
        _FILE | {"sha256": "G" * 64},
    ],
)
def test_upload_request_must_name_plain_files(db: Database, wrong: Any) -> None:
    run, token, execution = db.running_run()
    with pytest.raises(psycopg.Error, match="each of files must") as refusal:
        db.call("request_upload", token, execution, [_FILE, wrong])
    assert refusal.value.sqlstate == "PT400"
    assert db.run(run["id"])["upload_request"] is None
    assert db.call("request_upload", token, execution, [_FILE])["ok"]


@pytest.mark.parametrize("place", ["uploads/{id}/manifest.json", "{user_id}/{id}/manifest.json"])
def test_published_run_is_not_trained_again_after_a_lost_result(db: Database, place: str) -> None:
    run, token, execution = db.running_run()
    files = [{"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}]

    def check_in(execution: str) -> str:
        return str(db.call("check_in_run", token, run["external_job_id"], execution)["reason"])

    db.rows("create schema if not exists storage")
    db.rows("create table storage.objects (name text)")
    assert check_in(execution := str(uuid4())) == "ok"
    assert db.call("request_upload", token, execution, files)["ok"]
    assert db.call("grant_upload", run["id"], run["lease_token"], files, "sealed")
    assert check_in(execution := str(uuid4())) == "ok"
    db.rows("insert into storage.objects values (%s)", place.format(**run))
    assert check_in(str(uuid4())) == "ended"
    assert check_in(execution) == "ok"


def test_container_cannot_claim_the_job_id_of_another_run(db: Database) -> None:
    (another, _, _), (run, token) = db.running_run(), db.launched_run()
    answer = db.call("check_in_run", token, another["external_job_id"], str(uuid4()))
    assert (answer["may_train"], answer["reason"]) == (False, "superseded")
    assert db.run(run["id"])["external_job_id"] == run["external_job_id"]
    assert db.call("check_in_run", token, run["external_job_id"], str(uuid4()))["may_train"]


@pytest.mark.parametrize("named", ["x/../../purge-queue", "..", "a b", "x?y", "", "x" * 256, None, "x\n"])
def test_container_cannot_give_an_api_route_as_its_job_id(db: Database, named: str | None) -> None:
    run, token = db.launched_run()
    before = db.run(run["id"])
    for refused in (
        lambda: db.call("check_in_run", token, named, str(uuid4())),
        lambda: db.call("record_launch", run["id"], run["lease_token"], "runpod", named),
    ):
        with pytest.raises(psycopg.Error, match="external_job_id must be") as caught:
            refused()
        assert caught.value.sqlstate == "PT400"
    assert db.run(run["id"]) == before


def test_unrecorded_launch_becomes_known_by_its_check_in(db: Database) -> None:
    run = db.claimed_run()
    token = uuid4().hex * 2
    assert db.begin(run, token)["may_launch"]
    assert db.call("check_in_run", token, "ext-9", str(uuid4()))["may_train"]
    assert db.run(run["id"])["external_job_id"] == "ext-9"
    assert db.begin(run, token) == {"may_launch": False, "reason": "checked_in"}
    # A late answer to the POST, with the same or another id, does not change the owner.
    assert db.call("record_launch", run["id"], run["lease_token"], "runpod", "ext-10") is True
    assert db.run(run["id"])["external_job_id"] == "ext-9"
