"""What the owner of a job may change in it: cancel it, and nothing else."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.database.rows import Row
from tests.integration.database.rights.world import INSERTED, Actor, World, as_user, may_insert


@pytest.mark.parametrize("status", ["queued", "initializing", "running"])
@pytest.mark.fault(8)
def test_applications_own_update_cancels_a_job(world: World, status: str) -> None:
    world.database.rows("update training_jobs set status = %s, current_cost = 1.25", status)
    # The application's clock may be wrong, and its cost NaN, which is null in JSON.
    as_user(
        world,
        world.owner,
        "update training_jobs set status = 'cancelled', completed_at = '2001-01-01', final_cost = null where id = %s",
        world.job,
    )
    by_update = world.database.job(world.job)
    assert (by_update["status"], by_update["current_stage"]) == ("cancelled", "cancelled")
    assert by_update["final_cost"] == by_update["current_cost"]
    assert by_update["completed_at"] == by_update["updated_at"]

    world.database.rows("update training_jobs set status = %s, final_cost = null, completed_at = null", status)
    (by_function,) = as_user(world, world.owner, "select cancel_training_job(%s) as done", world.job)
    assert by_function == {"done": True}
    moving = {"completed_at": None, "updated_at": None}
    assert world.database.job(world.job) | moving == by_update | moving


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_ended_job_cannot_be_cancelled(world: World, status: str) -> None:
    world.database.rows("update training_jobs set status = %s", status)
    before = world.database.job(world.job)
    as_user(world, world.owner, "update training_jobs set status = 'cancelled' where id = %s", world.job)
    (answer,) = as_user(world, world.owner, "select cancel_training_job(%s) as done", world.job)
    assert answer == {"done": False}
    assert world.database.job(world.job) == before


@pytest.mark.parametrize(
    "change",
    ["progress = 100", "error_message = 'x'", "external_job_id = 'x'", "retry_count = 9", "artifact_id = null"],
)
def test_cancelling_update_may_change_no_other_column(world: World, change: str) -> None:
    world.database.rows("update training_jobs set artifact_id = (select id from model_artifacts)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="can only be cancelled"):
        as_user(world, world.owner, f"update training_jobs set status = 'cancelled', {change}")


def test_generous_application_policy_still_allows_cancelling_only(world: World) -> None:
    world.database.rows("create policy generous on training_jobs for all using (auth.uid() = user_id)")
    world.database.rows("create policy generous on notifications for all using (auth.uid() = user_id)")
    for statement in (
        "update training_jobs set status = 'completed'",
        "update training_jobs set progress = 50",
        "update notifications set title = 'x'",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_user(world, world.owner, statement)


def test_other_users_cannot_cancel_a_job(world: World) -> None:
    before = world.database.job(world.job)
    as_user(world, world.stranger, "update training_jobs set status = 'cancelled'")
    (answer,) = as_user(world, world.stranger, "select cancel_training_job(%s) as done", world.job)
    assert answer == {"done": False}
    assert world.database.job(world.job) == before


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "running"),
        ("status", "completed"),
        ("external_job_id", "another-job-of-runpod"),
        ("created_at", "2001-01-01"),
        ("created_at", "2101-01-01"),
        ("created_at", "infinity"),
        ("started_at", "2001-01-01"),
        ("final_cost", 0),
        ("user_id", None),
        ("dataset_id", None),
    ],
)
def test_new_job_must_be_queued_last_on_a_dataset_of_its_user(world: World, column: str, value: Any) -> None:
    owner = Actor("authenticated", world.owner)
    strangers: Row = {"user_id": str(world.stranger), "dataset_id": str(world.database.dataset(world.stranger))}
    fine = INSERTED["queue"]
    assert may_insert(world, owner, "training_jobs", fine)
    assert not may_insert(world, owner, "training_jobs", fine | {column: strangers.get(column, value)})


def test_dataset_cannot_change_its_owner(world: World) -> None:
    owner = Actor("authenticated", world.owner)
    assert world.attempt(owner, "update datasets set user_id = %s", world.stranger) is None
    assert world.attempt(owner, "update datasets set name = 'Quaggas'") == 1
