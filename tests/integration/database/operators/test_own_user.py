"""The operator's own user is the one that the service role has made: an address alone can be anybody's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from tests.database.rows import Database

MAIL = "operator@lora-worker.internal"


@pytest.fixture(autouse=True)
def address_is_free(db: Database) -> Iterator[None]:
    yield
    db.rows("delete from auth.users where email = %s", MAIL)


def signed_up(db: Database, metadata: Any) -> UUID:
    row = db.row(
        "insert into auth.users (email, raw_app_meta_data) values (%s, %s::jsonb) returning id",
        MAIL,
        json.dumps(metadata),
    )
    return UUID(str(row["id"]))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"provider": "email", "lora_worker": "operator"}, True),
        ({"provider": "email"}, False),
        ({"lora_worker": "somebody"}, False),
        (None, False),
    ],
)
def test_the_operators_user_is_known_by_its_metadata(db: Database, metadata: Any, expected: bool) -> None:
    user = signed_up(db, metadata)
    assert db.call("find_training_user", MAIL.upper()) == {"user_id": str(user), "email": MAIL, "is_operator": expected}


def test_nobody_else_is_the_operator(db: Database) -> None:
    user = db.user()
    db.rows('update auth.users set raw_app_meta_data = \'{"lora_worker": "operator"}\' where id = %s', user)
    assert db.call("find_training_user", str(user))["is_operator"] is False


@pytest.mark.parametrize(("metadata", "removed"), [({"lora_worker": "operator"}, True), ({}, False)])
def test_only_the_operators_own_trials_are_removed(db: Database, metadata: Any, removed: bool) -> None:
    """A user whose jobs were removed as trials would get their costs back for the day's budget."""
    (job,) = db.jobs(user=signed_up(db, metadata))
    db.rows("update datasets set name = 'lora-worker smoke' where id = %s", db.job(job)["dataset_id"])
    db.rows("update training_jobs set status = 'failed' where id = %s", job)
    assert db.call("remove_training_trial", job)["removed"] is removed
