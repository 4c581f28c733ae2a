"""The operator's commands as processes, beside a worker, a database and a GPU worker that are real."""

from __future__ import annotations

import json
import re

from sandbox.standin import Mishap
from tests.processes.stage import Stage
from tests.processes.waiting import until


def test_failed_job_is_understood_and_started_again_from_its_checkpoint(stage: Stage) -> None:
    # It crashes half-way, unless it has resumed from a checkpoint; with one attempt the job has failed then.
    job_id = stage.user.queue(seed=int(Mishap.CRASH_ONCE))
    worker = stage.worker(LORA_WORKER_MAX_ATTEMPTS="1")
    watched = stage.command("watch", job_id, "--json")
    assert watched.returncode == 3, watched.stderr
    changes = [json.loads(line) for line in watched.stdout.splitlines()]
    assert changes[-1]["status"] == "failed"
    assert len(changes) == len(set(watched.stdout.splitlines()))

    code = stage.runs(job_id)[0]["error_code"]
    listed = json.loads(stage.command("jobs", "--status", "failed", "--error", code, "--json").stdout)
    assert [job["job_id"] for job in listed["jobs"]] == [job_id]
    shown = stage.command("show", job_id[:13])
    assert shown.returncode == 0, shown.stderr
    for words in (code, "cold start", "training", "loss"):
        assert words in shown.stdout, words
    # Nothing holds up a settlement: the log is kept a moment later.
    until(lambda: "last lines of the log" in stage.command("show", job_id).stdout, "the log is kept", state=stage.log)
    assert f"{job_id[:8]}" in stage.command("status").stdout

    assert stage.command("retry", job_id).stdout == f"{job_id} is queued again\n"
    watched = stage.command("watch", job_id[:13])
    assert watched.returncode == 0, watched.stderr
    assert re.search("^[0-9a-f]{8} · completed", watched.stdout.splitlines()[-1])
    details = json.loads(stage.command("show", job_id, "--json").stdout)
    assert [(run["attempt"], run["status"]) for run in details["runs"]] == [(1, "failed"), (2, "succeeded")]
    second = [step.step for step in stage.steps(job_id) if step.run_id == details["runs"][1]["run_id"]]
    assert min(second) > 5, "it began anew instead of going on from its checkpoint"
    assert [cost["run_id"] for cost in details["costs"]] == [run["run_id"] for run in details["runs"]]
    again = stage.command("retry", job_id)
    assert (again.returncode, "the job is completed" in again.stdout) == (1, True)
    assert stage.user.notices(job_id).count("job_failed") == 1
    stage.stop(worker)


def test_held_queue_waits_and_a_drained_worker_ends_after_its_run(stage: Stage) -> None:
    worker = stage.worker()
    first = stage.user.queue(max_steps=100, seed=int(Mishap.ENDLESS))
    stage.training(first)
    assert stage.command("hold", "--reason", "an upgrade").returncode == 0
    second = stage.user.queue(max_steps=10)
    health = json.loads(stage.command("status", "--json").stdout)
    waits = {row["job_id"]: row["waits_for"] for row in health["waiting"]}
    assert waits[second] == "an operator, who holds all jobs: an upgrade"

    (name,) = [run["worker"] for run in stage.runs(first)]
    # Workers of other tests may have ended a moment ago.
    assert name in {row["name"] for row in json.loads(stage.command("drain", "--json").stdout)}
    assert "the queue may go" in stage.command("resume").stdout
    until(lambda: "worker is drained" in stage.log(), "the worker hears of it", state=stage.log)
    assert worker.poll() is None
    assert stage.command("cancel", first).stdout == f"{first} is cancelled\n"
    assert stage.dies(worker) == 0
    assert [run["status"] for run in stage.settled(first)] == ["cancelled"]
    # Released, and yet nobody took it.
    assert stage.runs(second) == []

    fresh = stage.worker()
    assert stage.command("watch", second).returncode == 0
    assert fresh.poll() is None
    assert name not in {run["worker"] for run in stage.runs(second)}
    stage.stop(fresh)
