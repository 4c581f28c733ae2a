"""An alias has one target: of two who move it at once one is told so, and rollbacks go back step by step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from lora_worker.database.functions import LIST_TRAINING_ALIASES, MOVE_TRAINING_ALIAS, TRAINING_ALIAS_HISTORY
from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row
from tests.integration.database.versions.test_versions import ids, listed, piped, trained


def move(db: Database, run: Row, number: int = 0, name: str = "zebras", **more: Any) -> Row:
    change = {"name": name, "run_id": str(run["id"]), "adapter": f"adapter-{str(run['job_id'])[:8]}", "moved_by": "ann",
              "number": number, **more}  # fmt: skip
    return dict(MOVE_TRAINING_ALIAS.answer.validate_python(db.call("move_training_alias", change)))


def alias(db: Database, name: str = "zebras") -> Row:
    (found,) = LIST_TRAINING_ALIASES.answer.validate_python(db.call("list_training_aliases", name, None))
    return dict(found)


def roll_back(db: Database) -> UUID | None:
    """Go back to where the alias says that a rollback leads; the new target, or None if it leads nowhere."""
    now = alias(db)
    if now["rollback"] is None:
        return None
    to = now["rollback"]
    answer = move(db, {"id": str(to["run_id"]), "job_id": str(to["job_id"])}, now["number"], restores=to["number"])
    assert answer["moved"], answer["reason"]
    return UUID(str(to["run_id"]))


def test_alias_tells_its_target_and_who_moved_it_from_where(db: Database) -> None:
    first, second = trained(db, 2)
    assert move(db, first)["moved"]
    made = alias(db)
    assert (made["number"], str(made["run_id"]), made["placed"], made["served"]) == (1, first["id"], False, False)
    assert made["rollback"] is None
    assert move(db, second, 1, moved_by="bob")["moved"]
    newest, oldest = TRAINING_ALIAS_HISTORY.answer.validate_python(db.call("training_alias_history", "zebras"))
    assert (newest["moved_by"], str(newest["from_job_id"])) == ("bob", first["job_id"])
    assert (oldest["moved_by"], oldest["from_run_id"]) == ("ann", None)
    by_id = {str(row["id"]): row["aliases"] for row in listed(db, of=first["id"])}
    assert by_id == {first["id"]: [], second["id"]: ["zebras"]}


def test_each_rollback_goes_one_target_further_back(db: Database) -> None:
    a, b, c, d = trained(db, 4)
    for number, run in enumerate((a, b, c)):
        assert move(db, run, number)["moved"]
    assert [str(roll_back(db)), str(roll_back(db)), roll_back(db)] == [b["id"], a["id"], None]
    # What is promoted now comes after a, and a rollback of it leads there again.
    assert move(db, d, alias(db)["number"])["moved"]
    assert [str(roll_back(db)), roll_back(db)] == [a["id"], None]
    restored = [m["restores"] for m in db.call("training_alias_history", "zebras")]
    assert restored == [1, None, 1, 2, None, None, None]


def test_rollback_passes_over_deleted_targets(db: Database) -> None:
    a, b, c = trained(db, 3)
    for number, run in enumerate((a, b, c)):
        move(db, run, number)
    db.rows("update model_artifacts set deleted_at = now() where id = %s", b["id"])
    assert str(roll_back(db)) == a["id"]


def test_of_two_promotes_at_once_the_loser_gets_a_sentence(db: Database, database: str) -> None:
    runs = trained(db, 8)
    together = Barrier(len(runs))

    def promote(run: Row) -> Row:
        own = Database(database)
        try:
            together.wait()
            return move(own, run, moved_by=run["id"][:8])
        finally:
            own.close()

    with ThreadPoolExecutor(len(runs)) as pool:
        answers = dict(zip((run["id"] for run in runs), pool.map(promote, runs), strict=True))
    (winner,) = (run_id for run_id, answer in answers.items() if answer["moved"])
    assert str(alias(db)["run_id"]) == winner
    losers = [answer for run_id, answer in answers.items() if run_id != winner]
    assert all(f"was moved by {winner[:8]} at" in answer["reason"] for answer in losers)
    assert all("after you looked: look again" in answer["reason"] for answer in losers)
    assert len(db.rows("select 1 from training_alias_moves")) == 1


def test_move_by_an_old_number_changes_nothing(db: Database) -> None:
    a, b, c = trained(db, 3)
    move(db, a)
    move(db, b, 1)
    late = move(db, c, 1)
    assert not late["moved"]
    assert str(late["alias"]["run_id"]) == b["id"]
    assert move(db, b, 2)["reason"] == "zebras leads to it already"


def test_alias_of_a_user_never_leads_to_the_adapter_of_another(db: Database) -> None:
    (mine,), (theirs,) = trained(db), trained(db)
    move(db, mine)
    assert move(db, theirs, 1)["reason"] == "the name zebras belongs to another user: choose another one"
    assert str(alias(db)["user_id"]) == mine["user_id"]
    assert move(db, theirs, name="zebras-2")["moved"]


@pytest.mark.parametrize("gone", ["deleted", "removed", "failed", "unknown"])
def test_adapter_that_is_not_there_is_no_target(db: Database, gone: str) -> None:
    (run,) = trained(db)
    if gone == "deleted":
        db.rows("update model_artifacts set deleted_at = now()")
    elif gone == "removed":
        db.rows("update training_jobs set artifact_id = null")
        db.rows("delete from model_artifacts")
    elif gone == "failed":
        run, _, _ = db.running_run()
        db.settle(run, "failed", fault="permanent")
    else:
        run = {"id": str(uuid4()), "job_id": str(uuid4())}
    assert move(db, run)["reason"] == "its adapter was deleted, or is not stored"
    assert db.rows("select 1 from training_aliases") == []


def test_deleting_the_promoted_adapter_is_told_with_the_alias(db: Database) -> None:
    a, b = trained(db, 2)
    move(db, a)
    move(db, b, 1)
    db.rows("update model_artifacts set deleted_at = now() where id = %s", b["id"])
    told = alias(db)
    assert told["deleted"]
    assert str(told["rollback"]["run_id"]) == a["id"]
    # It is listed as long as the alias leads to it, so that nobody overlooks it.
    assert {row["deleted"] for row in listed(db, of=a["id"])} == {True, False}
    assert ids(listed(db, of=a["id"])) == {a["id"], b["id"]}


def test_newer_queue_takes_aliases_and_its_deleted_adapters_none(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    run = piped(db, pipeline, user, db.dataset(user))
    assert move(db, run)["moved"]
    assert not alias(db)["deleted"]
    db.rows("update pipeline_training_jobs set adapter_status = 'deleted'")
    assert alias(db)["deleted"]
    assert not move(db, run, name="other")["moved"]


def test_erased_user_leaves_no_alias(db: Database) -> None:
    (gone,), (kept,) = trained(db), trained(db)
    move(db, gone)
    move(db, kept, name="kept")
    answer = db.call("erase_training_user", gone["user_id"])
    assert answer["rows"]["training_aliases"] == 1
    assert [row["name"] for row in db.rows("select name from training_aliases")] == ["kept"]
    assert [row["alias"] for row in db.rows("select alias from training_alias_moves")] == ["kept"]


def test_erasing_and_promoting_at_once_leave_no_alias_without_its_user(db: Database, database: str) -> None:
    (run,) = trained(db)
    with psycopg.connect(database) as erasing, ThreadPoolExecutor(1) as pool:
        erasing.execute("select public.erase_training_user(%s)", [run["user_id"]])
        promoted = pool.submit(move, db, run)
        erasing.commit()
        assert not promoted.result()["moved"]
    assert db.rows("select 1 from training_aliases") == []


@pytest.mark.parametrize("name", ["", "Zebras", "-a", "a b", "a/b", "../a", "a:live", "x" * 64, None])
def test_name_that_is_no_folder_of_its_own_is_refused(db: Database, name: str | None) -> None:
    (run,) = trained(db)
    with pytest.raises(psycopg.Error, match="the name of an alias"):
        move(db, run, name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", ["zebras:live", "../adapter-1", "adapter-", "adapter-a/b", "x"])
def test_target_is_the_name_of_an_adapter(db: Database, adapter: str) -> None:
    (run,) = trained(db)
    with pytest.raises(psycopg.errors.CheckViolation):
        move(db, run, adapter=adapter)


def test_only_the_newest_moves_of_an_alias_are_kept(db: Database) -> None:
    a, b = trained(db, 2)
    move(db, a)
    db.rows("update training_aliases set move_number = 300")
    db.rows("update training_alias_moves set number = 300")
    for number in range(300, 502):
        assert move(db, (b, a)[number % 2], number)["moved"]
    assert len(db.call("training_alias_history", "zebras")) == 200
    assert alias(db)["rollback"] is not None
