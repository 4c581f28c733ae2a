"""Migrates a database to this worker's schema, or undoes that: all files of `sql/` or `sql/down/` in a transaction."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import psycopg
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lora_worker.database.calls import SCHEMA_VERSIONS
from lora_worker.database.schema_changes import Change, compare, list_objects
from lora_worker.errors import (
    ArgumentError,
    SchemaMismatchError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
)

_SERVICE = "the database"

_CONNECT_SECONDS = 15
_OTHER_MIGRATION_SECONDS = 120
_TABLE_LOCK_SECONDS = 5
_ATTEMPTS = 5
_RELOAD = "notify pgrst, 'reload schema'"

# The key of the advisory lock. Any number will do, as long as all releases use the same.
_MIGRATION_LOCK = 0x10DA0001


def migration_files() -> list[tuple[str, str]]:
    """Return name and text of every migration, in the order in which they are applied."""
    return _sql_of(_sql_folder())


def undo_files() -> list[tuple[str, str]]:
    """Return name and text of every file that undoes a migration, beginning with the last migration."""
    return _sql_of(_sql_folder() / "down")[::-1]


@dataclass(frozen=True, slots=True)
class Migration:
    """The files that were applied, and what they changed; nothing in a database that was current."""

    files: list[str]
    changes: list[Change]


def migrate(
    database_url: str, *, storage_policies: bool | None = None, sleep: Callable[[float], None] = time.sleep
) -> Migration:
    """Apply every migration. May be repeated, and may run while workers run.

    With `storage_policies` signed-in users may store datasets and read their own models; with False they may not any
    more. None leaves that as it is.

    If the migration needs a lock that the running system holds, everything is rolled back and retried a few times.

    Raises:
        ArgumentError: the URL is none.
        SchemaMismatchError: the database's schema is newer than this worker.
        ServiceError: the database can't be reached, or it refused a statement; nothing is changed then.
    """
    return _apply_all(database_url, [*migration_files(), *_policy_files(storage_policies)], sleep)


def undo_migrations(database_url: str, *, sleep: Callable[[float], None] = time.sleep) -> Migration:
    """Remove everything that `migrate` added. All workers must be stopped.

    Rows of the application are kept. Tables that `migrate` created are dropped only if all of them are empty.

    Raises:
        ArgumentError: the URL is none.
        SchemaMismatchError: the database's schema is newer than this worker.
        ServiceError: the database can't be reached, or it refused a statement, for example because a run is live;
            nothing is changed then.
    """
    return _apply_all(database_url, [*_policy_files(False), *undo_files()], sleep)


def _policy_files(wanted: bool | None) -> list[tuple[str, str]]:
    if wanted is None:
        return []
    optional = _sql_folder() / "optional"
    return _sql_of(optional if wanted else optional / "down")


def describe_database(database_url: str) -> str:
    """Return host and name of the database that a URL leads to, without its password."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.Error:
        return "the database"
    return f"{parts.get('dbname', 'postgres')} at {parts.get('host', 'this machine')}"


def ask_for_reload(database_url: str) -> None:
    """Ask PostgREST again to reload the schema. Does nothing if the database can't be reached."""
    with contextlib.suppress(ArgumentError, ServiceError, psycopg.Error), _connect(database_url) as connection:
        connection.execute(_RELOAD)


class _BusyError(ServiceUnavailableError):
    """The running system held a lock that the migration needed. The transaction may be retried."""


def _apply_all(database_url: str, sql_files: list[tuple[str, str]], sleep: Callable[[float], None]) -> Migration:
    for attempt in Retrying(
        retry=retry_if_exception_type(_BusyError),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=1, max=10),
        sleep=sleep,
        reraise=True,
    ):
        with attempt, _transaction(database_url) as connection:
            before = list_objects(connection)
            applied = [_apply(connection, name, text) for name, text in sql_files]
            return Migration(applied, compare(before, list_objects(connection)))
    raise AssertionError("unreachable")


def _sql_folder() -> Traversable:
    """Return the folder with the migrations: inside this package in a wheel, at the top of the tree in a checkout."""
    packed = files("lora_worker") / "sql"
    return packed if packed.is_dir() else Path(__file__).parents[3] / "sql"


def _sql_of(folder: Traversable) -> list[tuple[str, str]]:
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return [(entry.name, entry.read_text(encoding="utf-8")) for entry in sorted(found, key=lambda e: e.name)]


# Our own sentences for libpq's errors. Its texts repeat parts of the URL, which may contain the password.
_UNKNOWN_HOST = "its host is not known (an @ in the password must be written %40)"
_CONNECT_FAULTS = (
    ("password authentication", "the database refused the user or the password: copy both again"),
    ("resolve host", _UNKNOWN_HOST),
    ("translate host", _UNKNOWN_HOST),
    ("unreachable", "no way leads to its host: where it has only an IPv6 address, take the session pooler's URL"),
    ("timeout", f"its host did not answer within {_CONNECT_SECONDS} s: check host and port, then try again"),
    ("refused", "nothing listens at its host and port: check both, then try again"),
)
_NO_URL = (
    "it is no URL of a database: copy postgresql://… from the project's settings, and write %25, %40 and %3A for "
    "a %, @ or : in the password"
)


def _explain_connect_fault(error: Exception) -> ServiceUnavailableError | ArgumentError:
    where = "no connection by --database-url (or its variable)"
    if not isinstance(error, psycopg.OperationalError):
        return ArgumentError(f"{where}: {_NO_URL}")
    text = str(error).lower()
    reasons = [reason for part, reason in _CONNECT_FAULTS if part in text]
    return ServiceUnavailableError(_SERVICE, f"{where}: {reasons[0] if reasons else 'check each part of the URL'}")


def _connect(database_url: str) -> psycopg.Connection:
    if not database_url.strip():
        # With an empty URL libpq would use its defaults, and perhaps migrate some other database.
        raise _explain_connect_fault(ValueError())
    try:
        return psycopg.connect(database_url, connect_timeout=_CONNECT_SECONDS, autocommit=False)
    except (psycopg.Error, ValueError) as error:
        raise _explain_connect_fault(error) from None


@contextmanager
def _transaction(database_url: str) -> Iterator[psycopg.Connection]:
    try:
        with _connect(database_url) as connection:
            connection.execute(f"set local lock_timeout = '{_OTHER_MIGRATION_SECONDS}s'".encode())
            connection.execute("select pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            # While a migration waits for a table's lock, all later queries of that table wait behind it. So it gives up
            # early and is retried.
            connection.execute(f"set local lock_timeout = '{_TABLE_LOCK_SECONDS}s'".encode())
            _refuse_newer(connection)
            yield connection
            # PostgREST caches the schema, and would answer 404 for new functions.
            connection.execute(_RELOAD)
    except psycopg.OperationalError as error:
        raise ServiceUnavailableError(
            _SERVICE, f"the database went away or is busy ({_first_line(error)}), nothing is changed: try again"
        ) from None


def _apply(connection: psycopg.Connection, name: str, text: str) -> str:
    try:
        connection.execute(text.encode())
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        raise _BusyError(
            _SERVICE,
            f"{name}: others held locks on its tables at each of {_ATTEMPTS} tries ({_first_line(error)}), nothing is "
            "changed: try again at a quieter moment",
        ) from None
    except psycopg.Error as error:
        raise ServiceRefusedError(
            _SERVICE, f"{name} was refused, nothing is changed ({_first_line(error)})", status=400
        ) from None
    return name


def _refuse_newer(connection: psycopg.Connection) -> None:
    found = connection.execute("select to_regprocedure('public.worker_schema_version()') is not null").fetchone()
    if not found or not found[0]:
        return
    version = connection.execute("select public.worker_schema_version()").fetchone()
    if version and version[0] > max(SCHEMA_VERSIONS):
        raise SchemaMismatchError(
            _SERVICE,
            f"the database's schema has version {version[0]}, newer than this worker's {max(SCHEMA_VERSIONS)}: "
            "update the worker instead",
        )


def _first_line(error: Exception) -> str:
    if isinstance(error, psycopg.DataError):
        # The text of such an error repeats the value, which may be private.
        return f"a row holds a value that it can't take, SQLSTATE {error.sqlstate}"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
