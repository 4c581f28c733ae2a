"""A day's spending stays within its budgets, however many workers claim; a job that does not fit waits and says why."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from lora_worker.launchers.places import Place, Places
from lora_worker.money.places import price_at, terms_at, terms_of_places
from lora_worker.money.pricing import load_prices
from lora_worker.money.terms import Terms
from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row
from tests.unit.worker.money.test_estimate import terms

WORKER = {"version": "1", "running_seconds": 1, "slots": 9, "held": 0, "max_per_user": None, "problem": None}


def set_terms(db: Database, **settings: Any) -> None:
    db.call("publish_training_terms", terms(**settings).model_dump(mode="json"), "w1")


def job(db: Database, user: UUID | None = None, *, tokens: int = 1_000_000) -> UUID:
    """Queue a job whose dataset was counted; returns its id."""
    (made,) = db.jobs(user=user)
    db.rows("update datasets set total_tokens = %s where id = %s", tokens, db.job(made)["dataset_id"])
    return made


def price(db: Database, job_id: UUID) -> float:
    """What the job may cost."""
    return float(db.row("select training_may_cost('training_jobs', %s) as answer", job_id)["answer"])


def owner_of(db: Database, job_id: UUID) -> UUID:
    return db.job(job_id)["user_id"]


def set_budget(db: Database, user: UUID | None, usd: float | None) -> bool:
    """Set a day's budget; returns whether it changed."""
    return bool(db.row("select set_training_budget(%s, %s::numeric) as answer", user, usd)["answer"])


def waits_for(db: Database, job_id: UUID) -> str:
    waiting = db.call("queue_health")["waiting"]
    (found,) = (entry["waits_for"] for entry in waiting if entry["job_id"] == str(job_id))
    return str(found)


def look_again(db: Database) -> None:
    """Let the holds run out."""
    db.rows("update training_holds set held_until = now()")


def claimed(rows: list[Row]) -> set[str]:
    return {row["run"]["job_id"] for row in rows}


def test_a_job_over_the_days_budget_waits_with_the_reason(db: Database) -> None:
    set_terms(db)
    db.call("report_worker", "w1", WORKER)
    jobs = [job(db) for _ in range(3)]
    one = price(db, jobs[0])
    set_terms(db, max_cost_per_day=2.5 * one)
    assert claimed(db.claim(max_jobs=3)) == {str(jobs[0]), str(jobs[1])}
    reason = waits_for(db, jobs[2])
    assert reason.startswith("the day's budget for all trainings: ")
    assert f"${2 * one:.2f} for live runs" in reason
    row = db.job(jobs[2])
    assert (row["status"], row["current_stage"]) == ("queued", "waiting_for_budget")
    assert row["error_message"].startswith("The day's budget for trainings is used up.")
    assert db.rows("select 1 from training_runs where job_id = %s", jobs[2]) == []


def test_a_job_goes_when_a_run_cost_less_than_expected(db: Database) -> None:
    set_terms(db)
    first, second = job(db), job(db)
    set_terms(db, max_cost_per_day=1.5 * price(db, first))
    (given,) = db.claim(max_jobs=2)
    db.settle(given["run"])
    assert db.claim() == []
    look_again(db)
    assert claimed(db.claim()) == {str(second)}
    run = db.row("select * from training_runs where job_id = %s", second)
    assert db.call("pass_breakers", run["id"], run["lease_token"], "base", "here")["go"]
    assert db.job(second)["error_message"] is None


def test_what_was_billed_today_counts_and_yesterday_does_not(db: Database) -> None:
    set_terms(db)
    waiting = job(db)
    user, one = owner_of(db, waiting), price(db, waiting)
    set_terms(db, max_cost_per_day=2 * one, max_cost_per_user_per_day=2 * one)
    bill = (
        "insert into cost_records (user_id, cost_type, amount, billing_period)"
        " values (%s, 'training_compute', %s, (now() at time zone 'utc')::date - %s)"
    )
    db.rows(bill, db.user(), 10 * one, 1)
    db.rows(bill, db.user(), 1.5 * one, 0)
    assert db.claim() == []
    # What a deleted bill has cost stays spent.
    db.rows("delete from cost_records")
    look_again(db)
    assert db.claim() == []
    assert db.call("queue_health")["spent_today"] == pytest.approx(
        float(db.call("training_budget_state")["day"]["spent"])
    )
    db.rows("truncate training_erased_costs")
    db.rows(bill, user, 1.5 * one, 0)
    look_again(db)
    assert db.claim() == []
    db.rows("truncate cost_records")
    look_again(db)
    assert claimed(db.claim()) == {str(waiting)}


def test_one_users_budget_stops_nobody_else(db: Database) -> None:
    set_terms(db)
    spender, other = db.user(), db.user()
    jobs = [job(db, spender), job(db, spender), job(db, other)]
    set_terms(db, max_cost_per_user_per_day=1.5 * price(db, jobs[0]))
    assert claimed(db.claim(max_jobs=3)) == {str(jobs[0]), str(jobs[2])}
    assert waits_for(db, jobs[1]).startswith("its user's budget for a day: ")


def test_a_set_budget_takes_the_place_of_the_setting_at_once(db: Database) -> None:
    set_terms(db)
    waiting = job(db)
    user, one = owner_of(db, waiting), price(db, waiting)
    set_terms(db, max_cost_per_user_per_day=0)
    assert db.claim() == []
    assert set_budget(db, user, 0.5 * one) is True
    assert set_budget(db, user, 0.5 * one) is False
    assert db.claim() == []
    assert "raise it with `lora-worker budget set`" in waits_for(db, waiting)
    assert f"may cost ${one:.2f}, and the budget is ${0.5 * one:.2f} a day" in db.job(waiting)["error_message"]
    assert db.call("remove_training_budget", user) is True
    assert db.call("remove_training_budget", user) is False
    assert db.claim() == []
    set_budget(db, user, None)
    assert claimed(db.claim()) == {str(waiting)}


@pytest.mark.parametrize("wrong", [-1, 2e9])
def test_an_impossible_budget_is_refused(db: Database, wrong: float) -> None:
    with pytest.raises(Exception, match="usd_per_day must lie between"):
        set_budget(db, None, wrong)


def test_workers_that_claim_at_once_share_one_budget(db: Database, database: str) -> None:
    set_terms(db)
    jobs = [job(db) for _ in range(12)]
    set_budget(db, None, 3.5 * price(db, jobs[0]))

    def claim(name: str) -> int:
        connected = Database(database)
        try:
            return len(connected.claim(name, max_jobs=4))
        finally:
            connected.close()

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(claim, [f"w{n}" for n in range(4)]))
    assert sum(counts) == 3
    state = db.call("training_budget_state")["day"]
    assert state["spent"] + state["live"] <= state["usd_per_day"]


def test_budgets_are_set_while_workers_claim(db: Database, database: str) -> None:
    """All of them change the holds of many jobs: without one order they would deadlock."""
    set_terms(db)
    user = db.user()
    db.jobs(80, user=user)
    db.rows("update datasets set total_tokens = 1000000")

    def act(number: int) -> int:
        connected, seen = Database(database), 0
        try:
            for turn in range(4):
                if number % 2:
                    set_budget(connected, None, 1 + turn)
                else:
                    seen += len(connected.claim(f"w{number}", max_jobs=3))
        finally:
            connected.close()
        return seen

    set_budget(db, None, 1)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(act, range(4))) <= 4
    assert db.call("training_budget_state")["day"]["live"] <= 4


def test_a_run_that_outgrew_its_estimate_counts_with_its_cost(db: Database) -> None:
    set_terms(db)
    run, _, _ = db.running_run()
    db.rows("update training_runs set last_seen_at = checked_in_at + interval '10 hours' where id = %s", run["id"])
    live = db.call("training_budget_state")["budgets"][0]["live"]
    assert live == pytest.approx(10 * 4.18, abs=0.01)


def test_runs_claimed_without_a_budget_count_once_there_is_one(db: Database) -> None:
    set_terms(db)
    first, second = job(db), job(db)
    db.claim()
    set_budget(db, None, 1.5 * price(db, first))
    assert db.claim() == []
    assert waits_for(db, second).startswith("the day's budget")


def test_a_job_of_an_unknown_gpu_is_claimed_to_be_refused(db: Database) -> None:
    """A hold would hide the sentence with which its preflight refuses it."""
    set_terms(db, max_cost_per_day=0)
    made = job(db)
    db.rows('update training_jobs set gpu_config = \'{"type": "abacus"}\' where id = %s', made)
    assert claimed(db.claim()) == {str(made)}


def test_a_dataset_that_nobody_counted_may_cost_what_a_job_may(db: Database) -> None:
    set_terms(db, max_cost_per_job=40)
    (made,) = db.jobs()
    assert price(db, made) == 40


def test_a_users_own_estimate_does_not_widen_the_budget(db: Database) -> None:
    set_terms(db)
    made = job(db)
    db.rows("update training_jobs set estimated_total_cost = 0.01 where id = %s", made)
    set_budget(db, None, 0.5)
    assert price(db, made) > 0.5
    assert db.claim() == []


def test_many_refusals_end_a_claim_and_the_rest_get_their_turn(db: Database) -> None:
    set_terms(db)
    user = db.user()
    big = db.jobs(700, user=user)
    db.rows("update datasets set total_tokens = 100000000 where user_id = %s", user)
    small = job(db, tokens=1000)
    set_budget(db, None, price(db, small) * 1.5)
    rounds = 0
    while not (found := db.claim(max_jobs=20)):
        rounds += 1
        assert rounds <= 700 // 50
    assert claimed(found) == {str(small)}
    assert len(big) == 700


def test_a_pipeline_job_waits_for_the_budget_too(db: Database, pipeline: Pipeline) -> None:
    set_terms(db)
    user = db.user()
    made = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    set_budget(db, user, 0)
    assert db.claim() == []
    row = db.row("select status, error_message from pipeline_training_jobs where id = %s", made)
    assert row["status"] == "pending"
    assert "ask for a higher budget" in row["error_message"]
    set_budget(db, user, None)
    assert len(db.claim()) == 1


def test_live_runs_go_on_when_the_budget_is_used_up(db: Database) -> None:
    set_terms(db)
    run, _, _ = db.running_run()
    set_budget(db, None, 0)
    lease = {"run_id": str(run["id"]), "lease_token": str(run["lease_token"])}
    (news,) = db.call("renew_training_runs", [lease], 60)
    assert news["held"]
    assert not news["cancel_requested"]


@pytest.mark.parametrize("asked", ["L4", "no such GPU", "H200"])
def test_reservation_is_for_the_dearest_place_whatever_a_job_asks_for(db: Database, asked: str) -> None:
    waiting = job(db)
    db.rows("update training_jobs set gpu_config = jsonb_build_object('type', %s::text) where id = %s", asked, waiting)
    here, there = (cast(Any, SimpleNamespace(endpoint=name)) for name in "ab")
    dear, cheap = Place("a", here, "H200", 2, 5.0), Place("b", there, "L4")
    costs = []
    for place in (dear, cheap):
        price_there = price_at(place, load_prices(), None)
        assert price_there is not None
        publish(db, terms_at(terms(), price_there, place.gpu_count))
        costs.append(price(db, waiting))
    assert costs[0] > costs[1] > 0
    publish(db, terms_of_places(terms(), Places(cheap, dear), load_prices()))
    assert price(db, waiting) == max(costs)


def publish(db: Database, published: Terms) -> None:
    db.call("publish_training_terms", published.model_dump(mode="json"), "w1")
