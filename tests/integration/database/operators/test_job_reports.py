"""Operators list the jobs of both queues page by page, and read everything about one."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from lora_worker.database.functions import LIST_TRAINING_JOBS, QUEUE_HEALTH, TRAINING_JOB_DETAILS
from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row, point, report


def listed(db: Database, **wanted: Any) -> list[str]:
    page = LIST_TRAINING_JOBS.answer.validate_python(db.call("list_training_jobs", wanted))
    return [job["job_id"] for job in page["jobs"]]


def details(db: Database, job: Any) -> Row:
    return dict(TRAINING_JOB_DETAILS.answer.validate_python(db.call("training_job_details", job)) or {})


def texts(ids: list[UUID]) -> list[str]:
    return [str(one) for one in ids]


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
def test_pages_hold_every_job_of_both_queues_once(db: Database, pipeline: Pipeline, limit: int) -> None:
    jobs = db.jobs(3)
    # A row may hold such times, and several rows may hold the same.
    db.rows("update training_jobs set created_at = 'infinity' where id = %s", jobs[0])
    db.rows("update training_jobs set created_at = null where id = %s", jobs[1])
    user = db.user()
    jobs += [pipeline.queue(user_id=user, created_at=time) for time in ("2026-01-01", "2026-01-01", "-infinity")]
    found, cursor = [], None
    while True:
        page = db.call("list_training_jobs", {"limit": limit, "cursor": cursor})
        assert len(page["jobs"]) <= limit
        found += [job["job_id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(found) == sorted(texts(jobs))
    assert found[-1] == str(jobs[-1])


def test_each_filter_finds_its_jobs(db: Database, pipeline: Pipeline) -> None:
    run, _, _ = db.running_run()
    db.settle(run, "failed", error_code="out_of_memory", fault="permanent")
    failed = str(run["job_id"])
    (queued,) = texts(db.jobs())
    db.rows('update training_jobs set hyperparameters = \'{"base_model": "org/base"}\' where id = %s', queued)
    user = db.user()
    newer = str(pipeline.queue(user_id=user, status="pending"))
    made = str(pipeline.queue(created_by=user, status="cancelled", created_at="2020-01-01"))
    assert listed(db, statuses=["failed"]) == [failed]
    assert sorted(listed(db, statuses=["queued"])) == sorted([queued, newer])
    assert sorted(listed(db, user_id=str(user))) == sorted([newer, made])
    assert listed(db, base_model="org/base") == [queued]
    # The newer queue has no base model of its own: that of the run counts, else the default.
    db.rows(
        "insert into training_terms (document, written_by) values ('{\"default_base_model\": \"org/default\"}', 'w')"
    )
    assert sorted(listed(db, base_model="org/default")) == sorted([failed, newer, made])
    assert listed(db, error_code="out_of_memory") == [failed]
    assert listed(db, until="2025-01-01") == [made]
    assert made not in listed(db, since="2025-01-01")
    assert listed(db, id_prefix=queued[:8]) == listed(db, id_prefix=queued) == [queued]
    assert listed(db, id_prefix="no id") == []


@pytest.mark.parametrize(
    "wanted",
    [{"user_id": "x"}, {"since": "yesterday or so"}, {"limit": "many"}, {"cursor": "x"}, {"cursor": "2026-01-01|x"}],
    ids=str,
)
def test_unreadable_filter_is_refused_in_words(db: Database, wanted: Row) -> None:
    with pytest.raises(psycopg.Error, match="can't be read") as caught:
        db.call("list_training_jobs", wanted)
    assert caught.value.sqlstate == "PT400"


def test_listed_job_says_how_it_stands(db: Database) -> None:
    run, _, _ = db.running_run()
    db.call("record_progress", [report(run, current_stage="training", progress=40, current_step=4, current_cost=0.5)])
    db.jobs()
    waiting, running = db.call("list_training_jobs", {})["jobs"]
    if waiting["status"] != "queued":
        waiting, running = running, waiting
    assert waiting["waits_for"] == "a worker: none has run yet; start one"
    assert (running["status"], running["stage"], running["progress"]) == ("running", "training", 40)
    assert (running["run_id"], running["attempt"], running["name"]) == (str(run["id"]), 1, "Zebras")
    assert (running["current_cost"], running["waits_for"]) == (0.5, None)


def test_stages_of_a_run_add_up_to_its_time(db: Database) -> None:
    run, token, execution = db.running_run()
    for stage in ("downloading", "loading_model", "loading_model", "training"):
        db.call("record_progress", [report(run, current_stage=stage)])
    # The worker may still write the stage of a launch that waits.
    db.call("record_progress", [report(run, current_stage="queued_on_gpu")])
    db.call("check_in_run", token, run["external_job_id"], execution)
    db.settle(run)
    (told,) = details(db, run["job_id"])["runs"]
    assert [stage["stage"] for stage in told["stages"]] == [
        *("queue", "launch", "cold_start", "setup", "downloading", "loading_model", "training"),
    ]  # fmt: skip
    whole = db.row(
        "select extract(epoch from r.ended_at - j.created_at) as seconds"
        " from training_runs r join training_jobs j on j.id = r.job_id"
    )["seconds"]
    assert sum(stage["seconds"] for stage in told["stages"]) == pytest.approx(float(whole), abs=0.01)


def test_stage_begins_with_the_heartbeat_that_tells_of_it(db: Database) -> None:
    run, token, execution = db.running_run()

    def beat(progress: Row) -> None:
        assert db.call("heartbeat_run", token, run["external_job_id"], execution, progress)["progress_stored"]

    for stage in ("setup", "downloading", "downloading", "training"):
        beat({"stage": stage})
    # What the worker has read of the launcher is older.
    db.call("record_progress", [report(run, current_stage="downloading")])
    # A container may write anything.
    for lie in ("\x1b[2J", "x" * 51, ["training"], 7, None, "Training"):
        beat({"stage": lie})
    # Its launcher starts the run again.
    again = str(uuid4())
    assert db.call("check_in_run", token, run["external_job_id"], again)["may_train"]
    assert db.call("heartbeat_run", token, run["external_job_id"], again, {"stage": "setup"})["progress_stored"]
    (told,) = details(db, run["job_id"])["runs"]
    stages = [stage["stage"] for stage in told["stages"]]
    assert stages[3:] == ["setup", "downloading", "training", "setup"]


def test_endless_stages_of_a_container_are_cut(db: Database) -> None:
    run, token, execution = db.running_run()
    for number in range(30):
        db.call("record_progress", [report(run, current_stage=f"stage {number}")])
        progress = {"stage": f"stage_{'x' * number}"}
        assert db.call("heartbeat_run", token, run["external_job_id"], execution, progress)["progress_stored"]
    assert db.row("select count(*) from training_stages")["count"] == 50


def test_later_run_waits_from_the_end_of_the_one_before(db: Database) -> None:
    run, _, _ = db.running_run()
    db.settle(run, "queued")
    db.rows("update training_runs set next_attempt_at = now(), ended_at = now() - interval '10 minutes'")
    db.claim()
    first, second = details(db, run["job_id"])["runs"]
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert 590 < second["stages"][0]["seconds"] < 700
    assert first["stages"][0]["seconds"] > 80_000


def test_details_hold_points_costs_and_artifact(db: Database) -> None:
    run, _, _ = db.running_run()
    db.call("record_progress", [report(run, [point(step) for step in (1, 2, 3)], current_step=3)])
    db.settle(run, points=[point(step) for step in (1, 2, 3)])
    told = details(db, run["job_id"])
    assert [(row["step"], row["loss"]) for row in told["points"]] == [(1, 1.5), (2, 1.5), (3, 1.5)]
    (cost,) = told["costs"]
    assert (cost["run_id"], cost["gpu_seconds"], cost["outcome"]) == (str(run["id"]), 360, "succeeded")
    assert told["artifact"]["id"] == str(run["id"])
    assert told["job"]["hyperparameters"]["epochs"] == 2
    assert db.call("training_job_details", uuid4()) is None


def test_details_of_the_newer_queue_have_the_same_shape(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    job = pipeline.queue(user_id=user, dataset_id=db.dataset(user), job_name="[bold]Zebras[/]")
    (claimed,) = db.claim()
    db.call("record_progress", [report(claimed["run"], [point(1), point(2)], current_step=2)])
    db.rows("update pipeline_training_metrics set value = 'NaN' where step_number = 2 and metric_id = 'training_loss'")
    db.settle(claimed["run"], "failed", error_code="child_crashed")
    told = details(db, job)
    assert (told["job"]["name"], told["job"]["status"]) == ("[bold]Zebras[/]", "failed")
    assert (told["job"]["error_code"], told["job"]["error_message"]) == ("child_crashed", "It broke.")
    assert [(row["step"], row["loss"]) for row in told["points"]] == [(1, 1.5), (2, None)]


def test_values_that_a_user_makes_long_or_odd_are_cut(db: Database) -> None:
    (job,) = db.jobs()
    db.rows("update training_jobs set hyperparameters = jsonb_build_object('base_model', repeat('x', 1000000))")
    db.rows(
        "update training_jobs set current_cost = 'NaN', error_message = repeat('x', 100000), started_at = 'infinity'"
    )
    assert len(str(details(db, job))) < 10_000
    assert len(str(db.call("list_training_jobs", {}))) < 5_000
    assert db.call("list_training_jobs", {})["jobs"][0]["started_at"] is None


def test_queue_health_tells_failures_of_the_day_and_its_spend(db: Database) -> None:
    first, _, _ = db.running_run()
    db.settle(first, "failed", error_code="child_crashed")
    second, _, _ = db.running_run()
    db.settle(second, "failed", error_code="out_of_memory")
    live, _, _ = db.running_run()
    db.call("record_progress", [report(live, current_cost=0.25)])
    health = QUEUE_HEALTH.answer.validate_python(db.call("queue_health"))
    assert health["failed_today"] == 2
    assert [row["error_code"] for row in health["failed"]] == ["out_of_memory", "child_crashed"]
    # 360 seconds of an H100 at $4.18 an hour, twice.
    assert float(health["spent_today"]) == pytest.approx(0.42 * 2 + 0.25)
    # A job that was started again has not failed.
    db.call("retry_training_job", second["job_id"])
    assert [row["error_code"] for row in db.call("queue_health")["failed"]] == ["child_crashed"]
    db.rows("update training_runs set ended_at = ended_at - interval '2 days' where ended_at is not null")
    assert db.call("queue_health")["failed_today"] == 0


def test_filter_that_finds_nothing_does_not_build_each_job(db: Database) -> None:
    """Supabase ends a statement after eight seconds, and a project may have a hundred thousand jobs."""
    db.jobs(2000)
    db.rows('update training_jobs set hyperparameters = hyperparameters || \'{"base_model": "org/base"}\'')
    db.rows("analyze")
    whole = db.pages("count(public.training_job_entry('training_jobs', id, null, null)) from training_jobs")
    assert db.pages('public.list_training_jobs(\'{"base_model": "org/other"}\')') < whole / 2


def test_listing_reads_a_page_and_not_every_job(db: Database) -> None:
    user = db.user()
    db.jobs(3000, user)
    db.rows("analyze")
    few = db.pages("public.list_training_jobs('{\"limit\": 10}')")
    db.jobs(3000, user)
    db.rows("analyze")
    assert db.pages("public.list_training_jobs('{\"limit\": 10}')") < few * 1.5
