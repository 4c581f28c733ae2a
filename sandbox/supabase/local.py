"""Starts a Supabase project on this machine: PostgreSQL, `@supabase/lite`, and a proxy in front of it.

All servers listen on free ports of 127.0.0.1, and end with the process that started them.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import jwt
import psycopg

from lora_worker.database.migrations import migration_files
from sandbox.errors import ChildFailedError
from sandbox.processes import Child, free_ports, remove_folder, run_tool, start_child, temporary_folder, wait_until
from sandbox.supabase.node import node_binary, node_packages
from sandbox.supabase.postgres import Postgres
from sandbox.supabase.project import Project
from sandbox.supabase.proxy import pages
from sandbox.supabase.proxy.settings import ProxySettings
from sandbox.supabase.rights import ROLES, default_grants

_DAY_SECONDS = 86_400
_PROBE_SECONDS = 3.0

_CONFIG = """\
[api]
port = {port}
schemas = ["public"]
max_rows = 1000

[db]
driver = "postgres"
url = "{database_url}"

[auth]
enabled = true
jwt_secret = "{jwt_secret}"
jwt_expiry = 86400
enable_signup = true
publishable_key = "env(SUPABASE_PUBLISHABLE_KEY)"
secret_key = "env(SUPABASE_SECRET_KEY)"

[auth.email]
enable_confirmations = false

[storage]
enabled = true
file_size_limit = "5GiB"
"""

# Hosted projects have these grants. Without the first one, a function with the rights of its caller can't call
# auth.uid().
_LOCAL_GRANTS = b"""
grant usage on schema auth, storage to anon, authenticated, service_role;
grant execute on all functions in schema auth to public;
grant execute on all functions in schema storage to public;
grant all on all tables in schema storage to anon, authenticated, service_role;
"""

# What REST knows of the schema: the signatures of functions, and the columns of tables.
_SCHEMA = b"""
select (select md5(string_agg(oid::regprocedure::text, ' ' order by oid)) from pg_proc
        where pronamespace = 'public'::regnamespace),
       (select md5(string_agg(format('%s.%s', attrelid, attname), ' ' order by attrelid, attnum)) from pg_attribute
        where attrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace))
"""

# The statement time-outs of roles in hosted projects; other roles inherit from these.
_STATEMENT_SECONDS = {"anon": 3, "authenticated": 8, "authenticator": 8}


class _Rest:
    """`@supabase/lite`, which serves REST, Auth and Storage from our PostgreSQL. `folder` holds its files."""

    def __init__(self, folder: Path, packages: Path, keys: ProxySettings) -> None:
        self._folder = folder
        lite = packages / "@supabase" / "lite" / "dist" / "cli" / "index.js"
        self._migrate = [node_binary(), lite, "migration", "up"]
        hosted = Path(__file__).with_name("hosted.mjs").as_uri()
        self._serve = [node_binary(), "--import", hosted, lite, "start", "--no-admin"]
        self._url = keys.upstream
        self._env = {
            **os.environ,
            "SUPABASE_PUBLISHABLE_KEY": keys.publishable_key,
            "SUPABASE_SECRET_KEY": keys.secret_key,
            "LITE_TELEMETRY": "0",
            "DO_NOT_TRACK": "1",
            "EXPERIMENTAL_STORAGE": "1",
            "LORA_SANDBOX_NODE_MODULES": str(packages),
            "LORA_SANDBOX_STATEMENT_SECONDS": json.dumps(_STATEMENT_SECONDS),
        }
        self._server: Child | None = None

    def configure(self, *, port: int, database_url: str, jwt_secret: str, migrated: bool) -> None:
        """Write the configuration and the migrations that `lite` reads; ours are among them if `migrated`."""
        target = self._folder / "supabase" / "migrations"
        target.mkdir(parents=True)
        for name, text in migration_files() if migrated else ():
            (target / name).write_text(text)
        config = _CONFIG.format(port=port, database_url=database_url, jwt_secret=jwt_secret)
        (self._folder / "supabase" / "config.toml").write_text(config)

    def migrate(self) -> None:
        """Apply the migrations of `lite` and ours. `lite` reads the schema only once, so this comes before `serve`."""
        done = run_tool(self._migrate, cwd=self._folder, env=self._env)
        if done.returncode != 0:
            words = "\n".join(f"{done.stdout}{done.stderr}".strip().splitlines()[-20:])
            raise ChildFailedError(f"the migrations could not be applied. The last words were:\n{words}")

    def serve(self) -> None:
        """Start the server and wait until it answers."""
        self._server = start_child(
            self._serve,
            name="The local Supabase",
            log=self._folder / "lite.log",
            env=self._env,
            cwd=self._folder,
        )
        wait_until(lambda: _answers(f"{self._url}/auth/v1/health"), self._server)

    @property
    def is_running(self) -> bool:
        """Whether the server was started and is still running."""
        return self._server is not None and self._server.returncode is None

    def stop(self) -> None:
        """Stop the server, if it is running."""
        if self._server is not None:
            self._server.stop()
            self._server = None


@dataclass(kw_only=True)
class LocalSupabase(Project):
    """A project on this machine. `LocalSupabase.start` starts one; as a context manager it stops it at the end."""

    postgres: Postgres
    jwt_secret: str = field(repr=False)
    """The secret with which the project signs its tokens and URLs."""
    _rest: _Rest = field(repr=False)
    _stack: ExitStack = field(repr=False)

    @classmethod
    def start(cls, root: Path, *, generous: bool = False, migrated: bool = True, **rules: int) -> Self:
        """Start PostgreSQL, apply the migrations, and serve a new project with its buckets.

        Args:
            root: the sandbox's folder. `root/cache` keeps the npm packages between starts. The project's files
                (objects, logs) are in another folder there, which `stop` removes.
            generous: grant everything on new tables and functions, as projects did before 2026-10-30.
            migrated: apply our migrations; without them it is a project as Supabase makes it.
            rules: `upload_url_seconds` and `file_size_limit`, if they shall differ from a hosted project's.

        Raises:
            SandboxError: something is missing or did not start; the text says what to do.
        """
        packages = node_packages(root.resolve() / "cache")
        with ExitStack() as stack:
            folder = temporary_folder(root)
            stack.callback(remove_folder, folder)
            postgres = stack.enter_context(Postgres.start())
            proxy_port, rest_port = free_ports(2)
            keys = ProxySettings(
                port=proxy_port,
                upstream=f"http://127.0.0.1:{rest_port}",
                jwt_secret=secrets.token_hex(32),
                publishable_key=f"sb_publishable_{secrets.token_hex(16)}",
                secret_key=f"sb_secret_{secrets.token_hex(16)}",
                database_url=postgres.url,
                **rules,
            )
            proxy = _start_proxy(keys, folder)
            stack.callback(proxy.stop)
            rest = _Rest(folder, packages, keys)
            stack.callback(rest.stop)
            rest.configure(port=rest_port, database_url=postgres.url, jwt_secret=keys.jwt_secret, migrated=migrated)
            with postgres.connect() as connection:
                connection.execute(f"{ROLES}{default_grants(generous=generous)}".encode())
            rest.migrate()
            with postgres.connect() as connection:
                connection.execute(_LOCAL_GRANTS)
            rest.serve()
            url = f"http://127.0.0.1:{proxy_port}"
            wait_until(lambda: _answers(f"{url}/auth/v1/health"), proxy)
            return cls(
                url=url,
                database_url=postgres.url,
                publishable_key=keys.publishable_key,
                secret_key=keys.secret_key,
                anon_jwt=_legacy_key("anon", keys.jwt_secret),
                service_role_jwt=_legacy_key("service_role", keys.jwt_secret),
                postgres=postgres,
                jwt_secret=keys.jwt_secret,
                _rest=rest,
                _stack=stack.pop_all(),
            )

    def answer_with_pages(self, prefix: str, *, status: int, times: int) -> None:
        """Answer the next `times` requests whose path begins with `prefix` with a gateway's page; 0 ends this."""
        httpx.post(
            f"{self.url}{pages.PATH}",
            headers={"apikey": self.secret_key},
            json={"prefix": prefix, "status": status, "times": times},
            timeout=30,
            trust_env=False,
        ).raise_for_status()

    def restart_rest(self) -> None:
        """Restart the server of REST, Auth and Storage. This is necessary after a change of the schema."""
        self._rest.stop()
        self._rest.serve()

    @contextmanager
    def reloads(self) -> Iterator[None]:
        """Until the context ends, REST gets a changed schema when the database asks for it, as in hosted projects.

        It is restarted for that, and calls fail meanwhile. So nothing happens where the schema is as REST knows it.
        """
        ended = threading.Event()

        def follow(connection: psycopg.Connection[Any]) -> None:
            known = connection.execute(_SCHEMA).fetchone()
            while not ended.is_set():
                if not list(connection.notifies(timeout=0.3)):
                    continue
                schema = connection.execute(_SCHEMA).fetchone()
                if schema != known:
                    known = schema
                    self.restart_rest()

        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("listen pgrst")
            # The server reads the schema at its first call. If that came after a migration, it would need no restart.
            with self.client() as client:
                client.get("/rest/v1/datasets?limit=0")
            thread = threading.Thread(target=follow, args=(connection,), name="local-supabase-reloads")
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def revive_rest(self) -> None:
        """Restart the server if it has ended, as a hosting platform would. A lost busy connection can end it."""
        if not self._rest.is_running:
            self.restart_rest()

    def rest_hangs(self) -> bool:
        """Tell whether the server no longer answers although Postgres does, which happens after a lost connection.

        Takes several seconds if the server hangs.
        """
        return all(self._waits_in_vain() for _ in range(2))

    def _waits_in_vain(self) -> bool:
        try:
            with self.postgres.connect():
                httpx.get(
                    f"{self.url}/rest/v1/datasets?select=id&limit=1",
                    headers={"apikey": self.secret_key},
                    timeout=_PROBE_SECONDS,
                    trust_env=False,
                    verify=False,  # noqa: S501 (plain HTTP; loading the root certificates would take longer than the rest)
                )
        except httpx.TimeoutException:
            return True
        except (httpx.TransportError, psycopg.Error):
            return False
        return False

    def stop_rest(self) -> None:
        """Stop REST, Auth and Storage until `restart_rest`. The proxy answers 502 meanwhile."""
        self._rest.stop()

    def stop(self) -> None:
        """Stop all servers and remove the project's files."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _start_proxy(settings: ProxySettings, folder: Path) -> Child:
    return start_child(
        [sys.executable, "-m", "sandbox.supabase.proxy"],
        name="The proxy of the local Supabase",
        log=folder / "proxy.log",
        env={**os.environ, **settings.to_environment()},
        cwd=Path(__file__).resolve().parents[2],
    )


def _answers(url: str) -> bool:
    try:
        return not httpx.get(url, timeout=5, trust_env=False).is_server_error
    except httpx.TransportError:
        return False


def _legacy_key(role: str, jwt_secret: str) -> str:
    now = int(time.time())
    claims = {"iss": "supabase", "role": role, "iat": now, "exp": now + 30 * _DAY_SECONDS}
    return jwt.encode(claims, jwt_secret, algorithm="HS256")
