"""Places in the database: slots over all workers, endpoints without a GPU, and runs that leave one of them."""

from __future__ import annotations

import hashlib
import threading
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.database.rows import H100, Database

HERE, THERE = "https://here.example/v2/a", "https://there.example/v2/b"


def claimed(db: Database) -> dict[str, Any]:
    db.jobs(1)
    (assignment,) = db.claim("w1")
    run: dict[str, Any] = assignment["run"]
    return run


def begin(db: Database, run: dict[str, Any], *, slots: int | None, endpoint: str = HERE) -> dict[str, Any]:
    sha256 = hashlib.sha256(str(run["id"]).encode()).hexdigest()
    answer: dict[str, Any] = db.call(
        "begin_launch_2", run["id"], run["lease_token"], "runpod", sha256, H100, endpoint, slots
    )
    return answer


def launched(db: Database, *, endpoint: str = HERE) -> dict[str, Any]:
    run = claimed(db)
    assert begin(db, run, slots=None, endpoint=endpoint)["may_launch"]
    run["external_job_id"] = uuid4().hex
    db.call("record_launch", run["id"], run["lease_token"], "runpod", run["external_job_id"], endpoint)
    return run


def check_in(db: Database, run: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = db.call("check_in_run", str(run["id"]), run["external_job_id"], str(uuid4()))
    return answer


def place(db: Database, endpoint: str = HERE, **asked: Any) -> dict[str, Any]:
    (row,) = db.call("training_places", [endpoint], asked.get("base_model", ""), asked.get("run_id"))
    found: dict[str, Any] = row
    return found


def test_slots_are_counted_over_all_live_launches(db: Database) -> None:
    first, second = claimed(db), claimed(db)
    assert begin(db, first, slots=1)["may_launch"]
    assert begin(db, second, slots=1) == {"may_launch": False, "reason": "full"}
    assert begin(db, first, slots=1)["may_launch"], "a run takes no slot from itself"
    assert begin(db, second, slots=1, endpoint=THERE)["may_launch"]
    assert (place(db)["launches"], place(db, run_id=first["id"])["launches"]) == (1, 0)


def test_two_workers_never_get_the_same_last_slot(db: Database, database: str) -> None:
    runs = [claimed(db) for _ in range(6)]
    answers: list[Any] = []
    start = threading.Barrier(len(runs))

    def ask(run: dict[str, Any]) -> None:
        own = Database(database)
        start.wait()
        answers.append(begin(own, run, slots=2)["may_launch"])
        own.close()

    threads = [threading.Thread(target=ask, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 4 + [True] * 2
    assert place(db)["launches"] == 2


def test_slot_of_an_ended_run_is_free_once_its_launch_has_ended(db: Database) -> None:
    run = launched(db)
    db.rows("update training_runs set status = 'failed', ended_at = now() where id = %s", run["id"])
    assert place(db)["launches"] == 1, "its launch may still have a GPU"
    db.call("close_launches", [{"external_job_id": run["external_job_id"], "gpu_seconds": 0}])
    assert place(db)["launches"] == 0


def note(db: Database, *, without_gpu: bool, state: str = "unknown") -> float:
    return float(db.call("note_endpoint_2", "runpod", HERE, state, "ill", without_gpu)["without_gpu_seconds"])


def test_time_without_a_gpu_counts_from_its_first_sight(db: Database) -> None:
    assert note(db, without_gpu=True) == 0
    db.rows("update training_endpoints set without_gpu_since = now() - interval '10 minutes'")
    assert note(db, without_gpu=True) == pytest.approx(600, abs=5)
    assert place(db)["without_gpu_seconds"] == pytest.approx(600, abs=5)
    assert note(db, without_gpu=False, state="well") == 0
    assert place(db)["without_gpu_seconds"] == 0


def test_endpoint_that_nobody_looks_at_is_not_known_to_lack_gpus(db: Database) -> None:
    note(db, without_gpu=True)
    db.rows(
        "update training_endpoints set without_gpu_since = now() - interval '1 day', looked_at = now() - interval '1 h'"
    )
    assert (place(db)["without_gpu_seconds"], place(db)["problem"]) == (0, None)
    assert note(db, without_gpu=True) == 0


def test_withdrawn_run_refuses_its_trainer(db: Database) -> None:
    run = launched(db)
    assert db.call("withdraw_launch", run["id"], run["lease_token"], 600) is True
    assert check_in(db, run)["reason"] == "ended"
    assert db.run(run["id"])["checked_in_at"] is None
    assert place(db)["passed_over_seconds"] == pytest.approx(600, abs=5)
    db.expire(run["id"])
    (adopted,) = db.call("adopt_training_runs_3", "w2", 5, 60, "{runpod}")
    assert adopted["run"]["withdrawn_at"] is not None


def test_withdrawn_run_is_not_launched_again_and_its_renewal_says_so(db: Database) -> None:
    run = claimed(db)
    assert begin(db, run, slots=1)["may_launch"]
    lease = {"run_id": run["id"], "lease_token": run["lease_token"]}
    (news,) = db.call("renew_training_runs_2", [lease], 60)
    assert news["withdrawn_at"] is None
    assert db.call("withdraw_launch", run["id"], run["lease_token"], 600) is True
    assert begin(db, run, slots=1, endpoint=THERE) == {"may_launch": False, "reason": "withdrawn"}
    (news,) = db.call("renew_training_runs_2", [lease], 60)
    assert news["withdrawn_at"] is not None


def test_run_whose_trainer_was_faster_stays_where_it_is(db: Database) -> None:
    run = launched(db)
    assert check_in(db, run)["may_train"] is True
    assert db.call("withdraw_launch", run["id"], run["lease_token"], 600) is False
    assert (db.run(run["id"])["withdrawn_at"], place(db)["passed_over_seconds"]) == (None, 0)


def test_check_in_and_withdrawal_at_the_same_moment_have_one_winner(db: Database, database: str) -> None:
    run = launched(db)
    with psycopg.connect(database) as holding:
        holding.execute("select from training_runs where id = %s for update", [run["id"]])
        answers: dict[str, Any] = {}

        def ask(name: str, call: Any) -> None:
            own = Database(database)
            answers[name] = call(own)
            own.close()

        threads = [
            threading.Thread(target=ask, args=("train", lambda own: check_in(own, run)["may_train"])),
            threading.Thread(
                target=ask,
                args=("leave", lambda own: own.call("withdraw_launch", run["id"], run["lease_token"], 60)),
            ),
        ]
        for thread in threads:
            thread.start()
        holding.commit()
        for thread in threads:
            thread.join()
    assert answers["train"] is not answers["leave"]


def test_waiting_job_is_put_back_without_an_attempt(db: Database) -> None:
    run = claimed(db)
    assert db.call("put_back_run", run["id"], run["lease_token"], "all taken", 60) == "put_back"
    job = db.row("select * from training_jobs where id = %s", run["job_id"])
    assert (job["status"], job["retry_count"], job["error_message"]) == ("queued", 0, "all taken")
    assert db.rows("select from training_runs where id = %s", run["id"]) == []
    assert db.claim("w1") == [], "it waits its minute"
    db.rows("update training_holds set held_until = now()")
    (again,) = db.claim("w1")
    assert again["run"]["attempt"] == 1


def test_holds_for_other_reasons_keep_no_job_waiting_longer(db: Database) -> None:
    waiting = {str(job) for job in db.jobs(41)}
    (assignment,) = db.claim("w1", 1)
    run = assignment["run"]
    db.rows(
        "insert into training_holds (job_id, kind, name, endpoint, reason, held_until)"
        " select id, case when row_number() over () > 20 then 'places' else 'budget' end, '', '', 'x',"
        "   now() + case when row_number() over () > 20 then interval '-6 minutes' else interval '1 hour' end"
        " from training_jobs where id <> %s",
        run["job_id"],
    )
    assert len(waiting) == 41
    assert db.call("put_back_run", run["id"], run["lease_token"], "all taken", 60) == "put_back"
    held = db.row("select held_until - now() <= interval '1 minute' as soon from training_holds where job_id = %s",
                  run["job_id"])  # fmt: skip
    assert held["soon"]


def test_sent_run_is_not_put_back(db: Database) -> None:
    run = launched(db)
    assert db.call("put_back_run", run["id"], run["lease_token"], "all taken", 60) == "launched"
    assert db.call("put_back_run", run["id"], str(uuid4()), "all taken", 60) == "lease_lost"
    assert db.run(run["id"])["status"] == "launched"


def test_held_base_model_is_known_before_a_place_is_chosen(db: Database) -> None:
    db.rows(
        "insert into training_breakers (kind, name, endpoint, opened_at, probe_at)"
        " values ('base_model', 'm', %s, now(), now() + interval '5 minutes')",
        HERE,
    )
    assert place(db, base_model="m")["held_seconds"] == pytest.approx(300, abs=5)
    assert place(db, base_model="other")["held_seconds"] == 0
    assert place(db, THERE, base_model="m")["held_seconds"] == 0


def probed(db: Database) -> dict[str, Any]:
    """A claimed run that tries an open breaker at HERE."""
    db.rows(
        "insert into training_breakers (kind, name, endpoint, opened_at, probe_at)"
        " values ('base_model', 'm', %s, now(), now())",
        HERE,
    )
    run = claimed(db)
    assert passes(db, run)
    return run


def passes(db: Database, run: dict[str, Any], endpoint: str = HERE) -> bool:
    return bool(db.call("pass_breakers", run["id"], run["lease_token"], "m", endpoint)["go"])


def test_place_is_held_while_a_run_tries_its_breaker(db: Database) -> None:
    probe, other = probed(db), claimed(db)
    assert place(db, base_model="m", run_id=other["id"])["held_seconds"] == 60
    assert place(db, base_model="m", run_id=probe["id"])["held_seconds"] == 0
    assert not passes(db, other)


def test_run_that_went_elsewhere_tries_no_breaker_here(db: Database) -> None:
    probe, other = probed(db), claimed(db)
    assert begin(db, probe, slots=None, endpoint=THERE)["may_launch"]
    db.call("record_launch", probe["id"], probe["lease_token"], "runpod", uuid4().hex, THERE)
    assert place(db, base_model="m", run_id=other["id"])["held_seconds"] == 0
    assert passes(db, other)


def test_refused_launch_gives_its_slot_back_when_its_run_goes_on(db: Database) -> None:
    run = claimed(db)
    assert begin(db, run, slots=1)["may_launch"]
    assert begin(db, run, slots=1, endpoint=THERE)["may_launch"]
    assert (place(db)["launches"], place(db, THERE)["launches"]) == (0, 1)
    assert [(at["endpoint"], at["launches"]) for at in db.call("queue_health")["endpoints"]] == [(THERE, 1)]


def test_place_that_a_job_has_left_is_known_for_hours(db: Database) -> None:
    run = launched(db)
    db.settle(run, "queued", error_code="no_gpu_there", fault=None)
    db.rows("update training_runs set next_attempt_at = now() where id = %s", run["id"])
    (again,) = db.claim("w1")
    later = again["run"]["id"]
    assert (place(db, run_id=later)["was_left"], place(db, THERE, run_id=later)["was_left"]) == (True, False)
    assert place(db, run_id=claimed(db)["id"])["was_left"] is False, "another job's"
    db.rows("update training_runs set ended_at = now() - interval '7 hours' where id = %s", run["id"])
    assert place(db, run_id=later)["was_left"] is False


def test_places_of_many_runs_are_those_of_each(db: Database) -> None:
    first, second = launched(db), launched(db, endpoint=THERE)
    db.rows(
        "update training_runs set error_code = 'no_gpu_there', ended_at = now(), status = 'failed' where id = %s",
        second["id"],
    )
    third = claimed(db)
    endpoints = [HERE, THERE]
    asked = [{"run_id": str(run["id"]), "base_model": "org/base"} for run in (first, second, third)]
    told = db.call("training_places_of_runs", endpoints, asked)
    assert told == {one["run_id"]: db.call("training_places", endpoints, "org/base", one["run_id"]) for one in asked}
    assert [place["launches"] for place in told[str(first["id"])]] == [0, 1]
    assert [place["was_left"] for place in told[str(second["id"])]] == [False, True]
    assert db.call("training_places_of_runs", endpoints, []) == {}


def test_older_jobs_for_a_full_place_keep_no_younger_one_waiting(db: Database) -> None:
    """A worker claims three of a user every ten seconds, the oldest first, and puts back those for the full place."""
    younger = str(db.jobs(31)[-1])
    for _ in range(20):
        db.rows("update training_holds set held_until = held_until - interval '10 seconds'")
        runs = [assignment["run"] for assignment in db.claim("w1", 20, 3)]
        for run in runs:
            assert db.call("put_back_run", run["id"], run["lease_token"], "all taken", 60) == "put_back"
        if younger in {run["job_id"] for run in runs}:
            break
    else:
        pytest.fail("the younger job was never claimed")


def test_worker_of_0_1_adopts_only_runs_that_it_can_go_on_with(db: Database) -> None:
    run = launched(db)
    db.expire(run["id"])
    db.rows("update training_runs set launcher = 'vertex'")
    assert db.call("adopt_training_runs", "old", 5, 60) == []
    db.rows("update training_runs set launcher = 'runpod', withdrawn_at = now()")
    assert db.call("adopt_training_runs", "old", 5, 60) == []
    db.rows("update training_runs set withdrawn_at = null")
    assert [adopted["run"]["id"] for adopted in db.call("adopt_training_runs", "old", 5, 60)] == [str(run["id"])]


def test_launches_of_fifty_endpoints_are_all_counted(db: Database) -> None:
    run = launched(db)
    db.rows(
        "insert into training_launches (run_id, external_job_id, launcher, endpoint)"
        " select %s, 'job ' || n, 'runpod', 'https://e.example/' || n from generate_series(1, 49) n",
        run["id"],
    )
    assert len(db.call("queue_health")["endpoints"]) == 50
