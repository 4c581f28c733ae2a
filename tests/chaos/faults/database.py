"""Faults of the database. The first one is none, to compare the others with."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress

import psycopg

from tests.chaos.clouds.base import Cloud
from tests.chaos.faults.table import OUTAGE_SECONDS, FaultTable
from tests.chaos.scene import Scene

FAULTS = FaultTable(Cloud)


@FAULTS.add("none (reference)")
def nothing(scene: Scene) -> None:
    scene.queue()


@FAULTS.add("Postgres restarts, in order and by a crash")
def postgres_restart(scene: Scene) -> None:
    scene.queue()
    for how in ("fast", "crash"):
        scene.until_training(5)
        time.sleep(1)
        scene.world.supabase.postgres.restart(how)


@FAULTS.add("database connections are killed, five times")
def backends_killed(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    for _ in range(5):
        scene.world.supabase.postgres.kill_backends()
        time.sleep(0.7)


@FAULTS.add("no database connection is left")
def connections_exhausted(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    postgres = scene.world.supabase.postgres
    with ExitStack() as held, psycopg.connect(postgres.url, autocommit=True, application_name="hoarder") as control:
        deadline = time.monotonic() + OUTAGE_SECONDS
        while time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                while True:
                    held.enter_context(psycopg.connect(postgres.url, application_name="hoarder"))
            # The fault takes each connection as soon as somebody returns it.
            control.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where backend_type = 'client backend' and application_name <> 'hoarder'"
            )
            time.sleep(0.02)
