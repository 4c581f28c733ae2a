"""The jobs of a GPU server, in a SQLite file: what was accepted is not lost by a restart, a kill or a power cut.

A job is queued, then running, and ends once: completed, failed, cancelled or timed out. When the server starts again,
what was running is queued again, for the trainer goes on from its checkpoint. The request holds signed URLs and the
run's token, so the file is readable by its owner only, and the request is erased when the job ends.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_worker.errors import GpuServerError, ServerBusyError

State = Literal["queued", "running", "completed", "failed", "cancelled", "timed_out"]
Ending = Literal["completed", "failed", "cancelled", "timed_out"]

MAX_QUEUED = 1000
"""The most jobs that wait; further ones are refused until one has begun."""
MAX_STARTS = 3
"""How often a job is started whose process, or server, is lost each time."""
KEPT_SECONDS = 7 * 86_400
"""How long the answer of a job that has ended is kept."""
_FORMAT = 1
_TABLE = """
create table if not exists jobs (
  id text primary key,
  run_id text not null,
  state text not null,
  request text,
  execution_limit real not null,
  expires_at real not null,
  submitted_at real not null,
  started_at real,
  ended_at real,
  starts integer not null default 0,
  seconds real not null default 0,
  gpu text,
  is_cancelled integer not null default 0,
  cause text,
  error text,
  output text
) strict;
create unique index if not exists one_live_job_of_a_run on jobs (run_id) where state in ('queued', 'running');
create index if not exists jobs_by_state on jobs (state, submitted_at);
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it is stored. Times are Unix seconds; `seconds` are those it has run, all its starts together."""

    id: str
    run_id: str
    state: State
    request: dict[str, Any] | None = field(repr=False)
    execution_limit: float
    expires_at: float
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    starts: int
    seconds: float
    gpu: str | None
    is_cancelled: bool
    cause: str | None
    error: str | None
    output: Any = field(repr=False)


class Jobs:
    """The stored jobs. Each call is one transaction, and has reached the disk when it returns."""

    def __init__(self, path: Path, *, now: Callable[[], float]) -> None:
        """Open the file, or make it; what was running when it was left is queued again, or ends.

        Raises:
            GpuServerError: the file can't be opened, is another program's, or a server uses it already.
        """
        self._now = now
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._file = sqlite3.connect(path, isolation_level=None, timeout=1)
            self._file.row_factory = sqlite3.Row
            # One server only: two would start the same jobs. The lock is held until the process ends, however it does.
            self._file.execute("pragma locking_mode = exclusive")
            self._file.execute("pragma synchronous = full")
            # Of what is erased nothing stays, neither in free pages nor in the journal: requests hold tokens.
            self._file.execute("pragma secure_delete = on")
            self._file.execute("pragma journal_mode = truncate")
            version = self._file.execute("pragma user_version").fetchone()[0]
            if version not in {0, _FORMAT}:
                raise GpuServerError(f"{path} was written by another release of lora-worker: choose another --data")
            with self._writing():
                for statement in filter(str.strip, _TABLE.split(";")):
                    self._file.execute(statement)
                self._file.execute(f"pragma user_version = {_FORMAT}")
                self._take_up()
        except sqlite3.OperationalError as error:
            reason = "another gpu-server uses it" if "locked" in str(error) else str(error)
            raise GpuServerError(f"{path} can't be used ({reason})") from None
        except sqlite3.DatabaseError:
            raise GpuServerError(f"{path} is no file of a gpu-server: choose another --data") from None
        except OSError as error:
            raise GpuServerError(f"{path} can't be opened ({error.strerror})") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def submit(self, run_id: str, request: dict[str, Any], *, execution_seconds: float, ttl_seconds: float) -> str:
        """Store a job and return its id; that of the job which this run has here already, if one is live.

        Raises:
            ServerBusyError: too many jobs wait.
        """
        with self._writing():
            live = self._file.execute(
                "select id from jobs where run_id = ? and state in ('queued', 'running')", (run_id,)
            ).fetchone()
            if live:
                return str(live["id"])
            self._remove_old()
            if self.count("queued") >= MAX_QUEUED:
                raise ServerBusyError(f"{MAX_QUEUED} jobs wait already")
            job_id, now = f"job-{uuid.uuid4().hex}", self._now()
            self._file.execute(
                "insert into jobs (id, run_id, state, request, execution_limit, expires_at, submitted_at)"
                " values (?, ?, 'queued', ?, ?, ?, ?)",
                (job_id, run_id, json.dumps(request), execution_seconds, now + ttl_seconds, now),
            )
            return job_id

    def find(self, job_id: str) -> Job | None:
        """Return a job; None if there is none of this id."""
        row = self._file.execute("select * from jobs where id = ?", (job_id,)).fetchone()
        return _job_of(row) if row else None

    def count(self, state: State) -> int:
        """Count the jobs of a state."""
        return int(self._file.execute("select count(*) from jobs where state = ?", (state,)).fetchone()[0])

    def take(self, gpu: str) -> Job | None:
        """Begin the job that has waited longest, on this GPU; None if none waits."""
        with self._writing():
            self._expire()
            row = self._file.execute(
                "select id from jobs where state = 'queued' order by submitted_at, id limit 1"
            ).fetchone()
            if row is None:
                return None
            self._file.execute(
                "update jobs set state = 'running', gpu = ?, starts = starts + 1,"
                " started_at = coalesce(started_at, ?) where id = ?",
                (gpu, self._now(), row["id"]),
            )
        return self.find(row["id"])

    def expire(self) -> None:
        """End the jobs that have waited too long for their first start."""
        with self._writing():
            self._expire()

    def note_seconds(self, job_id: str, seconds: float) -> None:
        """Note how long a job has run, all its starts together, so that a kill of this server loses little of it."""
        self._file.execute("update jobs set seconds = ? where id = ? and state = 'running'", (seconds, job_id))

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a job: one that waits ends at once, one that runs as soon as its process has ended."""
        with self._writing():
            self._file.execute("update jobs set is_cancelled = 1 where id = ? and state = 'running'", (job_id,))
            self._end(job_id, "cancelled", was="queued")
        return self.find(job_id)

    def end(
        self, job_id: str, ending: Ending, *, cause: str | None = None, error: str | None = None, output: Any = None
    ) -> None:
        """End a running job. A job ends once: of a second ending nothing is kept."""
        with self._writing():
            self._end(job_id, ending, was="running", cause=cause, error=error, output=output)

    def queue_again(self, job_id: str, error: str) -> None:
        """Queue a running job whose process was lost; after `MAX_STARTS` it fails with `error`."""
        with self._writing():
            self._requeue(job_id, error)

    def give_back(self, job_id: str) -> None:
        """Queue a running job that this server stops in order, to end itself: such a start does not count."""
        with self._writing():
            self._file.execute(
                "update jobs set starts = starts - 1 where id = ? and state = 'running' and starts > 0", (job_id,)
            )
            self._requeue(job_id, "")

    def _take_up(self) -> None:
        for row in self._file.execute("select id from jobs where state = 'running'").fetchall():
            self._requeue(row["id"], "The GPU server was stopped each time while the job ran.")
        self._expire()

    def _requeue(self, job_id: str, error: str) -> None:
        row = self._file.execute(
            "select is_cancelled, starts from jobs where id = ? and state = 'running'", (job_id,)
        ).fetchone()
        if row is None:
            return
        if row["is_cancelled"]:
            self._end(job_id, "cancelled", was="running")
        elif row["starts"] >= MAX_STARTS:
            self._end(job_id, "failed", was="running", cause="lost", error=error)
        else:
            self._file.execute("update jobs set state = 'queued', gpu = null where id = ?", (job_id,))

    def _expire(self) -> None:
        for row in self._file.execute(
            "select id from jobs where state = 'queued' and started_at is null and expires_at <= ?", (self._now(),)
        ).fetchall():
            self._end(row["id"], "timed_out", was="queued", error="No GPU was free in time.")

    def _end(
        self,
        job_id: str,
        ending: Ending,
        *,
        was: State,
        cause: str | None = None,
        error: str | None = None,
        output: Any = None,
    ) -> None:
        text = None if output is None else json.dumps(output)
        self._file.execute(
            "update jobs set state = ?, ended_at = ?, request = null, gpu = null, cause = ?, error = ?, output = ?"
            " where id = ? and state = ?",
            (ending, self._now(), cause, error, text, job_id, was),
        )

    def _remove_old(self) -> None:
        self._file.execute("delete from jobs where ended_at < ?", (self._now() - KEPT_SECONDS,))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._file.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._file.execute("rollback")
            raise
        self._file.execute("commit")


def _job_of(row: sqlite3.Row) -> Job:
    values = dict(row)
    for name in ("request", "output"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(**{**values, "is_cancelled": bool(values["is_cancelled"])})
