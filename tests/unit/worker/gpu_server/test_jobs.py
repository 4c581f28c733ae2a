"""What a GPU server has accepted is carried out once, whatever happens to the server."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_worker.errors import GpuServerError, ServerBusyError
from lora_worker.gpu_server import jobs as module
from lora_worker.gpu_server.jobs import KEPT_SECONDS, MAX_STARTS, Job, Jobs


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def jobs(path: Path, clock: Clock) -> Iterator[Jobs]:
    opened = Jobs(path, now=clock)
    yield opened
    opened.close()


def submit(jobs: Jobs, run_id: str = "run", **limits: float) -> str:
    return jobs.submit(run_id, {"run_id": run_id}, **{"execution_seconds": 60.0, "ttl_seconds": 600.0, **limits})


def found(jobs: Jobs, job_id: str) -> Job:
    job = jobs.find(job_id)
    assert job is not None
    return job


def restarted(jobs: Jobs, path: Path, clock: Clock) -> Jobs:
    """The jobs as the next server finds them. Closing is what the kernel does for a server that was killed."""
    jobs.close()
    return Jobs(path, now=clock)


def test_run_that_is_live_is_not_stored_twice(jobs: Jobs) -> None:
    first = submit(jobs)
    assert submit(jobs) == first
    jobs.take("0")
    assert submit(jobs) == first
    jobs.end(first, "failed")
    assert submit(jobs) != first


def test_jobs_begin_in_the_order_in_which_they_came(jobs: Jobs, clock: Clock) -> None:
    given = []
    for number in range(3):
        clock.at += 1
        given.append(submit(jobs, f"run-{number}"))
    taken = [jobs.take("0"), jobs.take("1"), jobs.take("0")]
    assert [job.id for job in taken if job] == given
    assert jobs.take("1") is None


def test_running_job_is_queued_again_by_the_next_server(jobs: Jobs, path: Path, clock: Clock) -> None:
    job_id = submit(jobs)
    jobs.take("0")
    jobs.note_seconds(job_id, 20)
    after = restarted(jobs, path, clock)
    job = found(after, job_id)
    assert (job.state, job.starts, job.seconds, job.request) == ("queued", 1, 20, {"run_id": "run"})
    after.close()


def test_job_that_kills_its_server_each_time_fails_at_last(jobs: Jobs, path: Path, clock: Clock) -> None:
    job_id = submit(jobs)
    for _ in range(MAX_STARTS):
        assert jobs.take("0") is not None
        jobs = restarted(jobs, path, clock)
    job = found(jobs, job_id)
    assert (job.state, job.cause, job.starts) == ("failed", "lost", MAX_STARTS)
    assert jobs.take("0") is None
    jobs.close()


def test_orderly_stops_do_not_count_as_lost_starts(jobs: Jobs, path: Path, clock: Clock) -> None:
    job_id = submit(jobs)
    for _ in range(MAX_STARTS + 2):
        assert jobs.take("0") is not None
        jobs.give_back(job_id)
        jobs = restarted(jobs, path, clock)
    assert found(jobs, job_id).state == "queued"
    jobs.close()


def test_cancelled_job_is_not_started_by_the_next_server(jobs: Jobs, path: Path, clock: Clock) -> None:
    job_id = submit(jobs)
    jobs.take("0")
    jobs.cancel(job_id)
    assert found(jobs, job_id).state == "running"  # its process has not ended yet
    after = restarted(jobs, path, clock)
    assert found(after, job_id).state == "cancelled"
    after.close()


def test_waiting_job_is_cancelled_at_once(jobs: Jobs) -> None:
    job_id = submit(jobs)
    jobs.cancel(job_id)
    assert found(jobs, job_id).state == "cancelled"
    assert jobs.take("0") is None


def test_job_ends_once(jobs: Jobs) -> None:
    job_id = submit(jobs)
    jobs.take("0")
    jobs.end(job_id, "completed", output={"status": "completed"})
    jobs.end(job_id, "failed", error="late")
    jobs.cancel(job_id)
    job = found(jobs, job_id)
    assert (job.state, job.error, job.output) == ("completed", None, {"status": "completed"})


def test_request_is_erased_with_the_end_and_private_before(jobs: Jobs, path: Path) -> None:
    job_id = submit(jobs)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    jobs.take("0")
    jobs.end(job_id, "completed")
    assert found(jobs, job_id).request is None


def test_nothing_of_an_erased_request_stays_on_the_disk(jobs: Jobs, path: Path) -> None:
    secret = "token-of-a-run-" * 3000
    job_id = jobs.submit("run", {"run_id": "run", "token": secret}, execution_seconds=60, ttl_seconds=600)
    assert b"token-of-a-run" in path.read_bytes()
    jobs.take("0")
    jobs.end(job_id, "completed")
    assert [file.name for file in path.parent.iterdir() if b"token-of-a-run" in file.read_bytes()] == []


def test_job_that_has_begun_is_not_ended_by_its_queue_limit(jobs: Jobs, path: Path, clock: Clock) -> None:
    job_id = submit(jobs, ttl_seconds=10)
    jobs.take("0")
    clock.at += 11
    after = restarted(jobs, path, clock)
    after.expire()
    assert found(after, job_id).state == "queued"
    assert after.take("0") is not None
    after.close()


def test_job_that_found_no_gpu_in_time_ends(jobs: Jobs, clock: Clock) -> None:
    job_id = submit(jobs, ttl_seconds=10)
    clock.at += 11
    jobs.expire()
    assert found(jobs, job_id).state == "timed_out"
    assert jobs.take("0") is None


def test_too_many_waiting_jobs_are_refused(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 2)
    submit(jobs, "a")
    submit(jobs, "b")
    with pytest.raises(ServerBusyError):
        submit(jobs, "c")
    assert submit(jobs, "a")  # what waits already is no further job


def test_ended_job_is_forgotten_after_a_week(jobs: Jobs, clock: Clock) -> None:
    job_id = submit(jobs)
    jobs.take("0")
    jobs.end(job_id, "completed")
    clock.at += KEPT_SECONDS + 1
    submit(jobs, "another")
    assert jobs.find(job_id) is None


def test_two_servers_do_not_share_a_file(jobs: Jobs, path: Path, clock: Clock) -> None:
    with pytest.raises(GpuServerError, match="another gpu-server uses it"):
        Jobs(path, now=clock)


def test_file_of_something_else_is_refused(path: Path, clock: Clock) -> None:
    path.write_bytes(b"no database at all, but more than a hundred bytes" * 9)
    with pytest.raises(GpuServerError, match="is no file of a gpu-server"):
        Jobs(path, now=clock)


def test_file_of_a_later_release_is_refused(jobs: Jobs, path: Path, clock: Clock) -> None:
    jobs._file.execute("pragma user_version = 99")
    jobs.close()
    with pytest.raises(GpuServerError, match="another release"):
        Jobs(path, now=clock)
