"""A move of an alias is served when its adapter lies on the volume and no machine holds what lay there before."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from lora_worker.database.functions import CLAIM_ENDPOINT_RELEASE, NOTE_ENDPOINT_RELEASE
from tests.database.rows import Database, Row
from tests.integration.database.versions.test_aliases import alias, move
from tests.integration.database.versions.test_versions import trained


def changes(db: Database) -> Row:
    return dict(db.call("training_alias_changes"))


def carry_out(db: Database, *, problem: str | None = None) -> Row:
    """What the errand of a worker does with the changes: all of them, or none with a problem."""
    asked = changes(db)
    db.call("training_note_alias_changes", asked, [] if problem else list(asked), problem)
    return asked


def claim(db: Database, worker: str = "w1", again_seconds: int = 1800) -> Row | None:
    answer = CLAIM_ENDPOINT_RELEASE.answer.validate_python(db.call("claim_endpoint_release", worker, 60, again_seconds))
    return dict(answer) if answer else None


def note(db: Database, worker: str = "w1", **told: Any) -> bool:
    return NOTE_ENDPOINT_RELEASE.answer.validate_python(db.call("note_endpoint_release", worker, told))


def release(db: Database, *old_workers: str) -> None:
    assert claim(db) == {"release": True, "old_workers": []}
    assert note(db, released=True, old_workers=list(old_workers))
    assert claim(db) == {"release": False, "old_workers": list(old_workers)}
    assert note(db, done=True)
    assert claim(db) is None


def served(db: Database) -> tuple[bool, bool]:
    now = alias(db)
    return now["placed"], now["served"]


def name_of(run: Row) -> str:
    return f"adapter-{str(run['job_id'])[:8]}"


def test_first_target_is_served_as_soon_as_it_lies_on_the_volume(db: Database) -> None:
    (run,) = trained(db)
    move(db, run)
    assert served(db) == (False, False)
    assert carry_out(db) == {"zebras:live": name_of(run)}
    assert served(db) == (True, True)
    assert changes(db) == {}
    assert claim(db) is None


def test_later_target_is_served_when_all_machines_are_replaced(db: Database) -> None:
    a, b = trained(db, 2)
    move(db, a)
    carry_out(db)
    move(db, b, 1)
    assert carry_out(db) == {"zebras:live": name_of(b)}
    assert served(db) == (True, False)
    release(db, "m1", "m2")
    assert served(db) == (True, True)


def test_what_is_placed_during_a_release_waits_for_another_one(db: Database) -> None:
    a, b, c = trained(db, 3)
    move(db, a)
    carry_out(db)
    move(db, b, 1)
    carry_out(db)
    assert claim(db) == {"release": True, "old_workers": []}
    move(db, c, 2)
    carry_out(db)
    assert note(db, released=True, old_workers=["m1"])
    # The release was asked for with a claim from before c was placed.
    assert claim(db) == {"release": True, "old_workers": ["m1"]}
    assert note(db, done=True)
    assert served(db) == (True, False)
    assert note(db, released=True) is False
    assert claim(db) == {"release": True, "old_workers": []}
    assert note(db, released=True, old_workers=["m2"])
    assert note(db, done=True)
    assert served(db) == (True, True)


def test_one_worker_at_a_time_replaces_machines_and_another_goes_on(db: Database) -> None:
    a, b = trained(db, 2)
    move(db, a)
    carry_out(db)
    move(db, b, 1)
    carry_out(db)
    assert claim(db, "w1") is not None
    assert claim(db, "w2") is None
    assert note(db, "w2", done=True) is False
    assert note(db, "w1", released=True, old_workers=["m1"])
    # w1 was killed; what it has done is not lost.
    db.rows("update training_endpoint_releases set claimed_until = now()")
    assert note(db, "w1", done=True) is False
    assert claim(db, "w2") == {"release": False, "old_workers": ["m1"]}
    assert note(db, "w2", done=True)
    assert served(db) == (True, True)


def test_release_that_does_not_end_is_made_again(db: Database) -> None:
    a, b = trained(db, 2)
    move(db, a)
    carry_out(db)
    move(db, b, 1)
    carry_out(db)
    claim(db)
    note(db, released=True, old_workers=["m1"], problem="m1 is still at work")
    assert alias(db)["problem"] == "m1 is still at work"
    assert claim(db, again_seconds=0) == {"release": True, "old_workers": ["m1"]}


def test_failed_errand_is_tried_again_later_and_at_once_after_a_move(db: Database) -> None:
    a, b = trained(db, 2)
    move(db, a)
    assert carry_out(db, problem="the volume is full") != {}
    assert alias(db)["problem"] == "the volume is full"
    assert changes(db) == {}
    db.rows("update training_aliases set next_at = now()")
    for attempt in range(2, 14):
        carry_out(db, problem="x" * 600)
        wait = db.row("select extract(epoch from next_at - now()) as s from training_aliases")["s"]
        assert 29 < wait <= 3600, attempt
        db.rows("update training_aliases set next_at = now()")
    carry_out(db, problem="again")
    move(db, b, 1)
    assert changes(db) == {"zebras:live": name_of(b)}
    assert alias(db)["problem"] is None


def test_move_during_an_errand_is_placed_by_the_next_one(db: Database) -> None:
    a, b = trained(db, 2)
    move(db, a)
    asked = changes(db)
    move(db, b, 1)
    db.call("training_note_alias_changes", asked, list(asked), None)
    assert served(db) == (False, False)
    assert changes(db) == {"zebras:live": name_of(b)}
    carry_out(db)
    assert served(db) == (True, False)


def test_deleted_target_is_taken_from_the_volume_and_the_machines(db: Database) -> None:
    a, b = trained(db, 2)
    move(db, a)
    carry_out(db)
    db.rows("update model_artifacts set deleted_at = now() where id = %s", a["id"])
    assert carry_out(db) == {"zebras:live": None}
    assert changes(db) == {}
    release(db, "m1")
    assert alias(db)["deleted"]
    # What comes after it has no machine to wait for.
    move(db, b, 1)
    carry_out(db)
    assert served(db) == (True, True)


def test_erased_alias_is_taken_from_the_volume_and_the_machines(db: Database) -> None:
    (gone,), (other,) = trained(db), trained(db)
    move(db, gone)
    carry_out(db)
    db.call("erase_training_user", gone["user_id"])
    assert changes(db) == {"zebras:live": None}
    # Another user takes the name before anything was removed: machines may still have the adapter of the first.
    move(db, other)
    assert carry_out(db) == {"zebras:live": name_of(other)}
    assert served(db) == (True, False)
    release(db, "m1")
    assert served(db) == (True, True)
    assert db.rows("select 1 from training_removed_aliases") == []


def test_alias_that_is_erased_during_its_errand_is_taken_away_again(db: Database) -> None:
    (gone,) = trained(db)
    move(db, gone)
    asked = changes(db)
    db.call("erase_training_user", gone["user_id"])
    assert changes(db) == {}
    db.call("training_note_alias_changes", asked, list(asked), None)
    assert carry_out(db) == {"zebras:live": None}
    assert claim(db) is not None


def test_removal_that_fails_is_tried_again_later(db: Database) -> None:
    (gone,) = trained(db)
    move(db, gone)
    carry_out(db)
    db.call("erase_training_user", gone["user_id"])
    carry_out(db, problem="no")
    assert changes(db) == {}
    db.rows("update training_removed_aliases set next_at = now()")
    assert carry_out(db) == {"zebras:live": None}
    assert claim(db) is not None


def test_errand_changes_a_bounded_number_of_aliases(db: Database) -> None:
    user = db.user()
    runs = trained(db, 1, UUID(str(user)))
    for number in range(55):
        assert move(db, runs[0], name=f"z{number}")["moved"]
    assert len(carry_out(db)) == 50
    assert len(carry_out(db)) == 5
