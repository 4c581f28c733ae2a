"""Upload URLs expire: a grant can be withdrawn, and no execution gets another one's grant."""

from __future__ import annotations

from uuid import uuid4

from tests.database.rows import Database, Row

_FILES = [{"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}]


def _granted(db: Database, sealed: str = "sealed") -> tuple[Row, str, str]:
    run, token, execution = db.running_run()
    assert db.call("request_upload", token, execution, _FILES)["ok"]
    assert db.call("grant_upload", run["id"], run["lease_token"], _FILES, sealed)
    return run, token, execution


def _asked(db: Database, run: Row) -> object:
    lease = {"run_id": str(run["id"]), "lease_token": str(run["lease_token"])}
    (news,) = db.call("renew_training_runs", [lease], 60)
    return news["upload_request"]


def test_expired_grant_is_withdrawn_and_issued_again(db: Database) -> None:
    run, token, execution = _granted(db)
    assert db.call("request_upload", token, execution, _FILES)["ok"]
    assert db.call("upload_grant", token, execution)["sealed"] == "sealed"
    assert db.call("request_upload", token, execution, _FILES, True)["ok"]
    assert db.call("upload_grant", token, execution) == {"granted": False, "sealed": None}
    assert _asked(db, run) == _FILES
    assert db.call("grant_upload", run["id"], run["lease_token"], _FILES, "fresh")
    assert db.call("upload_grant", token, execution)["sealed"] == "fresh"


def test_restarted_execution_never_gets_its_predecessors_urls(db: Database) -> None:
    run, token, first = _granted(db)
    second = str(uuid4())
    assert db.call("check_in_run", token, run["external_job_id"], second)["may_train"]
    assert _asked(db, run) is None
    assert db.call("upload_grant", token, second) == {"granted": False, "sealed": None}
    assert db.call("request_upload", token, second, _FILES)["ok"]
    assert db.call("upload_grant", token, second) == {"granted": False, "sealed": None}
    assert db.call("request_upload", token, first, _FILES, True)["ok"] is False


def test_heartbeat_does_not_change_the_grant(db: Database) -> None:
    run, token, execution = _granted(db)
    assert db.call("check_in_run", token, run["external_job_id"], execution)["may_train"]
    assert db.call("upload_grant", token, execution)["sealed"] == "sealed"
