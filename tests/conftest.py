"""Real servers for the tests, started once a session and only when a test asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import structlog

from sandbox.supabase import LocalSupabase
from sandbox.supabase.postgres import Postgres
from sandbox.supabase.project import Project
from tests.project import ROOT

SANDBOX = ROOT / ".sandbox"

_TABLES = (
    "training_aliases", "cost_records", "notifications", "model_artifacts", "training_runs", "training_jobs",
    "datasets",
)  # fmt: skip
_LEFT_TO_DO = (
    "training_removed_aliases", "training_endpoint_releases", "training_served_removals", "training_serving_errands",
)  # fmt: skip
"""What the removal of those rows leaves for a worker to do: the next test's would launch an errand for it."""


@pytest.fixture(autouse=True)
def _no_logger_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that a test calls in this process configures the log for it, with a stream that ends with the test."""
    configure = structlog.configure
    monkeypatch.setattr(structlog, "configure", lambda **how: configure(**{**how, "cache_logger_on_first_use": False}))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A plain PostgreSQL of our own, for tests that need SQL and no HTTP."""
    with Postgres.start() as server:
        yield server


@pytest.fixture(scope="session")
def database_template(postgres: Postgres) -> str:
    """The name of a database that holds what every Supabase project has, and our migrations."""
    return postgres.create_template()


@pytest.fixture(scope="session")
def generous_template(postgres: Postgres) -> str:
    """The same in a project that grants every new table and function to all roles, as they did before 2026-10-30."""
    return postgres.create_template(generous=True)


@pytest.fixture
def database(postgres: Postgres, database_template: str) -> Iterator[str]:
    """The superuser's URL of a fresh, migrated database, dropped after the test."""
    with postgres.clone(database_template) as url:
        yield url


@pytest.fixture(scope="session")
def supabase() -> Iterator[Project]:
    """A Supabase project: that of `SUPABASE_URL` (our migrations applied), or else a local one.

    It is shared by the whole session. A test makes its own users and looks at their rows only.
    """
    remote = Project.from_environment()
    if remote is not None:
        yield remote
        return
    with LocalSupabase.start(SANDBOX) as project:
        yield project


@pytest.fixture
def empty_supabase(supabase: Project) -> Iterator[Project]:
    """The shared project, from which the rows of all users that tests have made are gone before and after.

    For tests that run a whole worker, which claims whatever is queued.
    """
    _remove_rows(supabase)
    yield supabase
    _remove_rows(supabase)


@pytest.fixture
def local_supabase() -> Iterator[LocalSupabase]:
    """A local Supabase of the test's own, which it may break."""
    with LocalSupabase.start(SANDBOX) as project:
        yield project


def _remove_rows(project: Project) -> None:
    with psycopg.connect(project.database_url, autocommit=True) as connection:
        for table in _TABLES:
            # Users of others, in a project that is not ours, keep their rows.
            statement = psycopg.sql.SQL("delete from public.{} where user_id = any(%s::uuid[])")
            connection.execute(statement.format(psycopg.sql.Identifier(table)), [project.user_ids])
        for table in _LEFT_TO_DO if isinstance(project, LocalSupabase) else ():
            connection.execute(psycopg.sql.SQL("delete from public.{}").format(psycopg.sql.Identifier(table)))
