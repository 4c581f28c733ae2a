"""Which adapters must not be served any more, and how an errand is begun, taken over, confirmed and repeated."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row, outcome
from tests.processes.waiting import until

NAME = "adapter-0a1b2c3d"


KEY = '{"serving_name": "adapter-0a1b2c3d"}'


def asked(db: Database, run: Row, stage: str | None = "uploading") -> None:
    changed = "update training_runs set stage = %s, launched_with = launched_with || %s::jsonb where id = %s"
    db.rows(changed, stage, KEY, run["id"])


def told(db: Database, run: Row) -> None:
    db.rows("update training_runs set measured = %s where id = %s", KEY, run["id"])


def served_run(db: Database) -> Row:
    """A completed run whose adapter is served."""
    run, _, _ = db.running_run()
    asked(db, run)
    db.settle(run)
    told(db, run)
    return run


def claim(db: Database, worker: str = "w1") -> Any:
    return db.call("claim_serving_errand", worker, "runpod", "https://here", 60)


def end(db: Database, errand: Any, removed: list[str], **more: Any) -> Any:
    return db.call("end_serving_errand", errand["id"], errand["lease_token"], {"removed": removed, **more})


def delete(db: Database, run: Row) -> None:
    db.rows("update model_artifacts set deleted_at = now() where id = %s", run["id"])


def due_now(db: Database) -> None:
    db.rows("update training_served_removals set next_at = now()")


def test_nothing_is_launched_while_every_adapter_is_wanted(db: Database) -> None:
    served_run(db)
    assert claim(db) is None
    assert db.rows("select from training_serving_errands") == []


def test_deleted_model_is_removed_once_and_forgotten_when_confirmed(db: Database) -> None:
    run = served_run(db)
    delete(db, run)
    errand = claim(db)
    assert errand["request"] == {"remove": [str(run["id"])], "aliases": {}}
    assert errand["external_job_id"] is None
    assert db.call("record_serving_errand", errand["id"], errand["lease_token"], "https://here", "job-1")
    assert claim(db)["external_job_id"] == "job-1"
    errand = claim(db)
    assert end(db, errand, [str(run["id"]), "not-asked-for"], gpu_seconds=7.5) == 1
    assert end(db, errand, [str(run["id"])]) is None
    assert claim(db) is None
    assert db.rows("select from training_served_removals") == []
    after = db.run(run["id"])
    assert "serving_name" not in after["launched_with"]
    assert after["measured"] == {}
    assert db.row("select gpu_seconds from training_serving_errands")["gpu_seconds"] == pytest.approx(7.5)


def test_restored_model_is_not_removed(db: Database) -> None:
    run = served_run(db)
    delete(db, run)
    errand = claim(db)
    end(db, errand, [], problem="the volume is away")
    db.rows("update model_artifacts set deleted_at = null")
    due_now(db)
    assert claim(db) is None
    assert db.rows("select from training_served_removals") == []


def test_what_was_not_confirmed_is_asked_for_again_later_and_later(db: Database) -> None:
    run = served_run(db)
    delete(db, run)
    waits = []
    for _ in range(3):
        end(db, claim(db), [], problem="x" * 900)
        assert claim(db) is None
        row = db.row("select extract(epoch from next_at - now())::int as wait, problem from training_served_removals")
        waits.append(round(row["wait"] / 60))
        assert len(row["problem"]) == 500
        due_now(db)
    assert waits == [1, 2, 4]
    assert claim(db)["request"]["remove"] == [str(run["id"])]


def test_errand_has_one_worker_and_is_taken_over_after_its_lease(db: Database, database: str) -> None:
    delete(db, served_run(db))
    workers = [Database(database) for _ in range(4)]
    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            errands = list(pool.map(lambda pair: claim(pair[1], f"w{pair[0]}"), enumerate(workers)))
    finally:
        for worker in workers:
            worker.close()
    [errand] = [found for found in errands if found]
    assert claim(db, "late") is None
    db.rows("update training_serving_errands set lease_expires_at = now()")
    taken = claim(db, "late")
    assert (taken["id"], taken["request"]) == (errand["id"], errand["request"])
    assert not db.call("record_serving_errand", errand["id"], errand["lease_token"], "https://here", "job-1")
    assert end(db, errand, errand["request"]["remove"]) is None
    assert end(db, taken, taken["request"]["remove"]) == 1


@pytest.mark.parametrize(
    ("stage", "job_status", "expected"),
    [
        ("uploading", "failed", True),
        ("uploading", "cancelled", True),
        ("saving", "cancelled", False),
        ("training", "failed", False),
        (None, "cancelled", False),
        ("uploading", "queued", False),
    ],
)
def test_run_that_ended_without_its_model_is_removed_if_it_was_uploading(
    db: Database, stage: str | None, job_status: str, expected: bool
) -> None:
    run, _, _ = db.running_run()
    asked(db, run, stage)
    db.settle(run, job_status)
    assert (claim(db) is not None) == expected


@pytest.mark.parametrize("is_erased", [False, True])
def test_run_that_may_be_served_is_given_up_where_there_is_no_volume(db: Database, is_erased: bool) -> None:
    """A trainer without a volume puts nothing anywhere, and an errand for each failed run would never end."""
    known, (failed, _, _) = served_run(db), db.running_run()
    asked(db, failed)
    db.settle(failed, "failed")
    delete(db, known)
    if is_erased:
        db.call("erase_training_user", failed["user_id"])
    end(db, claim(db), [], problem="No volume is mounted.", replace_workers=True, no_volume=True)
    due_now(db)
    assert claim(db)["request"]["remove"] == [str(known["id"])]
    assert db.rows("select from training_endpoint_releases") == []


def test_heartbeat_tells_of_uploading_before_the_worker_does(db: Database) -> None:
    run, token, execution = db.running_run()
    asked(db, run, "training")
    progress = {"run_id": str(run["id"]), "stage": "uploading", "progress": 97}
    db.call("heartbeat_run", token, run["external_job_id"], execution, progress)
    db.settle(run, "cancelled")
    assert claim(db)["request"]["remove"] == [str(run["id"])]


def test_run_that_asked_for_no_name_or_got_none_is_never_removed(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows("update training_runs set stage = 'uploading'")
    db.settle(run, "failed")
    other, _, _ = db.running_run()
    asked(db, other)
    db.settle(other, measured={"serving_name": None})
    delete(db, other)
    assert claim(db) is None


def test_run_whose_job_another_process_has_completed_may_be_served(db: Database) -> None:
    run, _, _ = db.running_run()
    asked(db, run)
    db.rows("update training_jobs set status = 'completed' where id = %s", run["job_id"])
    assert db.settle(run, measured={"serving_name": NAME}) == "completed"
    after = db.run(run["id"])
    assert (after["status"], after["measured"]) == ("succeeded", None)
    errand = claim(db)
    assert errand["request"]["remove"] == [str(run["id"])]
    # Nobody told that it is served: without a volume it costs no second errand.
    end(db, errand, [], problem="no volume", no_volume=True)
    assert db.rows("select from training_served_removals") == []


def test_failed_attempt_that_a_later_one_replaced_costs_no_errand(db: Database) -> None:
    run, _, _ = db.running_run()
    asked(db, run)
    db.settle(run, "queued")
    db.rows("update training_runs set next_attempt_at = now()")
    later = db.claim(max_jobs=9)[0]["run"]
    db.begin(later, "t" * 64)
    asked(db, later)
    db.settle(later)
    told(db, later)
    assert claim(db) is None


def test_erased_users_adapters_are_removed_after_their_rows(db: Database) -> None:
    run = served_run(db)
    other, _, _ = db.running_run()
    db.settle(other)
    assert db.call("erase_training_user", run["user_id"])["erased"]
    assert db.call("erase_training_user", other["user_id"])["erased"]
    assert db.rows("select from training_runs where id = %s", run["id"]) == []
    errand = claim(db)
    assert errand["request"]["remove"] == [str(run["id"])]
    assert end(db, errand, [str(run["id"])]) == 1
    assert claim(db) is None


def test_newer_queues_adapter_is_removed_when_it_is_marked_deleted(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    [claimed] = db.claim()
    run = claimed["run"]
    db.begin(run, "t" * 64)
    asked(db, run)
    made = outcome("completed")
    made["artifact"]["archive"] = "lora-models/adapters/x.tar.gz"
    assert db.call("settle_run", run["id"], run["lease_token"], made) == "completed"
    told(db, run)
    assert claim(db) is None
    db.rows("alter table pipeline_training_jobs add column if not exists adapter_status text default 'active'")
    db.rows("update pipeline_training_jobs set adapter_status = 'superseded'")
    assert claim(db) is None
    db.rows("update pipeline_training_jobs set adapter_status = 'deleted'")
    assert claim(db)["request"]["remove"] == [str(run["id"])]


def test_errand_counts_as_gpu_work_of_this_database(db: Database) -> None:
    delete(db, served_run(db))
    errand = claim(db)
    assert [(e["endpoint"], e["launches"], e["without_run"]) for e in db.call("queue_health")["endpoints"]] == [
        ("https://here", 1, 0)
    ]
    end(db, errand, [])
    assert db.call("queue_health")["endpoints"] == []


def test_moved_alias_is_set_by_an_errand(db: Database) -> None:
    run = served_run(db)
    move = {"name": "bot", "number": 0, "run_id": str(run["id"]), "adapter": NAME, "moved_by": "me"}
    assert db.call("move_training_alias", move)["moved"]
    errand = claim(db)
    assert errand["request"] == {"remove": [], "aliases": {"bot:live": NAME}}
    end(db, errand, [], aliases=["bot:live"])
    assert db.row("select placed_number from training_aliases")["placed_number"] == 1
    assert claim(db) is None


@pytest.mark.parametrize(("answers", "wanted"), [(True, 1), (False, 0)])
def test_machines_that_answer_are_replaced_after_a_removal(db: Database, answers: bool, wanted: int) -> None:
    run = served_run(db)
    delete(db, run)
    end(db, claim(db), [str(run["id"])], replace_workers=answers)
    assert len(db.rows("select from training_endpoint_releases")) == wanted


def test_ids_and_numbers_of_a_container_are_bounded(db: Database) -> None:
    delete(db, served_run(db))
    errand = claim(db)
    assert UUID(errand["request"]["remove"][0])
    for odd in ({"removed": "all"}, {"removed": [1, None, {}]}, {}):
        db.rows("update training_serving_errands set ended_at = null")
        assert end(db, errand, **{"removed": [], **odd}, gpu_seconds="many") == 0


def copies(db: Database, run: Row, count: int) -> None:
    """Insert so many runs like this one, of other jobs."""
    db.rows(
        "insert into training_runs (job_id, user_id, attempt, status, stage, lease_expires_at, launched_with)"
        " select gen_random_uuid(), user_id, 1, status, stage, now(), launched_with"
        " from training_runs, generate_series(1, %s) where id = %s", count, run["id"],
    )  # fmt: skip


def pages_of_a_claim(db: Database) -> int:
    db.rows("vacuum analyze training_runs")
    return db.pages("claim_serving_errand('w1', 'runpod', 'https://here', 60)")


def test_runs_of_which_nothing_is_served_are_looked_at_once(db: Database) -> None:
    served = served_run(db)
    failed, _, _ = db.running_run()
    asked(db, failed, "training")
    db.settle(failed, "failed")
    live, _, _ = db.running_run()
    asked(db, live)
    # The first call reads the catalogue, too.
    _, few = pages_of_a_claim(db), pages_of_a_claim(db)
    asked(db, failed, "training")
    copies(db, failed, 900)
    assert claim(db) is None
    named = db.rows("select id from training_runs where launched_with ? 'serving_name'")
    assert {row["id"] for row in named} == {served["id"], live["id"]}
    assert pages_of_a_claim(db) < few + 450


def test_removals_beyond_ten_thousand_keep_their_waiting_time(db: Database) -> None:
    run = served_run(db)
    delete(db, run)
    copies(db, run, 10_200)
    errand = claim(db)
    end(db, errand, [], problem="no")
    db.rows("update training_served_removals set attempts = 7")
    claim(db)
    assert db.row("select count(*), min(attempts) from training_served_removals") == {"count": 10_201, "min": 7}


def test_errand_and_release_that_end_at_once_do_not_deadlock(db: Database, database: str) -> None:
    run = served_run(db)
    move = {"name": "bot", "number": 0, "run_id": str(run["id"]), "adapter": NAME, "moved_by": "me"}
    assert db.call("move_training_alias", move)["moved"]
    errand = claim(db)
    db.rows("update training_aliases set is_stale = true")
    db.rows("insert into training_endpoint_releases (wanted_at) values (now())")
    with psycopg.connect(database) as noting, ThreadPoolExecutor(1) as pool:
        noting.execute("select from training_endpoint_releases for update")
        ending = pool.submit(end, db, errand, [], aliases=["bot:live"])
        waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        with psycopg.connect(database, autocommit=True) as looking:
            until(lambda: looking.execute(waits).fetchone(), "the errand waits for the release")
        # What note_endpoint_release does next. Either of the two fails if the errand holds the alias.
        noting.execute("update training_aliases set is_stale = false")
        noting.commit()
        assert ending.result() == 0
    assert db.row("select placed_number from training_aliases")["placed_number"] == 1
