"""Releases change while jobs are trained: migrations run on a live system, and workers of two releases work at once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from lora_worker.database.function import schema_marker
from lora_worker.database.functions import SCHEMA_VERSION
from lora_worker.database.migrations import migrate
from tests.processes.stage import Stage

CURRENT, NEXT = SCHEMA_VERSION, SCHEMA_VERSION + 1

_NEWER = "create or replace function public.worker_schema_version() returns int" + (
    " language sql immutable set search_path = '' as $$ select {version} $$"
)


def start_release(stage: Stage, schemas: str) -> subprocess.Popen[bytes]:
    return stage.worker(module="tests.processes.release", RELEASE_SCHEMAS=schemas)


@pytest.fixture
def schema(stage: Stage) -> Iterator[psycopg.Connection]:
    """A connection with which a test changes the schema's version; afterwards our version is restored."""
    with psycopg.connect(stage.project.database_url, autocommit=True) as connection:
        yield connection
        connection.execute(_NEWER.format(version=CURRENT))
        migrate(stage.project.database_url)


def test_migrating_a_live_system_loses_no_job(stage: Stage) -> None:
    jobs = [stage.user.queue(max_steps=20) for _ in range(6)]
    stage.worker()
    stage.worker()
    stage.training(jobs[0], step=1)
    with ThreadPoolExecutor(2) as pool:
        # Two at once, as two machines of a deployment may run them.
        applied = list(pool.map(migrate, [stage.project.database_url] * 6))
    assert not any(done.changes for done in applied)
    for job_id in jobs:
        assert stage.ended(job_id)["status"] == "completed"
        assert len(stage.launches(job_id)) == len(stage.runs(job_id)) == 1
        assert stage.user.chart(job_id)[-1]["step"] == 20
    assert "Traceback" not in stage.log()


def test_older_worker_continues_while_the_newer_schema_supports_it(stage: Stage, schema: psycopg.Connection) -> None:
    started = stage.user.queue(max_steps=60)
    start_release(stage, f"{CURRENT}")
    stage.training(started, step=1)
    schema.execute(_NEWER.format(version=NEXT))
    later = stage.user.queue(max_steps=20)
    for job_id in (started, later):
        assert stage.ended(job_id)["status"] == "completed"
        assert len(stage.launches(job_id)) == len(stage.runs(job_id)) == 1
    assert "has version" not in stage.log()


def test_older_worker_stops_once_its_functions_are_dropped(stage: Stage, schema: psycopg.Connection) -> None:
    jobs = [stage.user.queue(max_steps=60) for _ in range(3)]
    older = start_release(stage, f"{CURRENT}")
    stage.training(jobs[0], step=1)
    schema.execute(_NEWER.format(version=NEXT))
    schema.execute(f"drop function {schema_marker(CURRENT)}".encode())
    assert stage.dies(older) == 1
    assert f"has version {NEXT}, this worker knows {CURRENT}" in stage.log()
    assert "Traceback" not in stage.log()
    # The older worker released its leases, so the newer one need not wait for them.
    assert all(run["worker"] is None for job_id in jobs for run in stage.runs(job_id))
    start_release(stage, f"{CURRENT},{NEXT}")
    for job_id in jobs:
        assert stage.ended(job_id)["status"] == "completed"
        assert len(stage.launches(job_id)) == len(stage.runs(job_id)) == 1


def test_two_compatible_releases_share_the_queue(stage: Stage) -> None:
    start_release(stage, f"{CURRENT},{NEXT}")
    stage.worker()
    jobs = [stage.user.queue(max_steps=10) for _ in range(6)]
    for job_id in jobs:
        assert stage.ended(job_id)["status"] == "completed"
        assert len(stage.launches(job_id)) == len(stage.runs(job_id)) == 1
