"""Hostile rows and containers, all at once, beside honest jobs: the honest ones are trained as if alone.

Two workers train five honest jobs of three users: once alone, once beside unreadable rows, dishonest containers,
a user with fifty thousand queued jobs, and connections that block the health ports.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests.chaos.clouds.runpod import RunPodCloud
from tests.chaos.dishonest import Lie
from tests.chaos.verdict import ENDED
from tests.chaos.world import LEASE_SECONDS, Plan, World
from tests.processes.waiting import until

pytestmark = pytest.mark.chaos

_HONEST_JOBS = 5
_HONEST_STEPS = 240
_PER_USER = 4
_FLOOD_JOBS = 50_000
_STRANGERS = 40
_LONGER_THAN_ALONE = 1.5
"""How many times longer the honest jobs may take beside hostile ones; both are measured here in turn."""
_MOST_DOLLARS = 1.0
"""A bill that no job of this scene can reach honestly: the whole scene takes minutes."""
_ENV = {
    "LORA_WORKER_MAX_PER_USER": str(_PER_USER),
    "LORA_WORKER_MAX_ATTEMPTS": "2",
    "LORA_WORKER_SLOTS": "20",
}


@dataclass(frozen=True)
class Outcome:
    """The honest jobs' final rows and how long they took."""

    seconds: float
    statuses: list[str]
    gpu_seconds: list[float]


class DishonestRunPod(RunPodCloud):
    """RunPod, whose containers lie where their job's seed says so."""

    handler_module = "tests.chaos.dishonest"


@pytest.fixture
def world() -> Iterator[World]:
    with World.start(
        gpus=_HONEST_JOBS + len(Lie),
        cloud=DishonestRunPod,
        env=_ENV,
    ) as started:
        yield started


def test_hostile_rows_and_containers_do_not_disturb_honest_jobs(world: World) -> None:
    ports = _start_workers_with_health_ports(world)
    alone = _train_honest_jobs(world)

    liars = _queue_liars(world)
    poisoned = _leave_poisoned_rows(world)
    refused = _send_poisoned_rows(world)
    flooder = _flood_the_queue(world)
    with _half_requests(ports):
        _until_hostile_work_is_under_way(world, liars)
        beside = _train_honest_jobs(world)
        _until_ended(world, [*liars.values(), *poisoned])
        stops = [worker.stop() for worker in list(world.crew.workers)]

    print(f"alone {alone.seconds:.1f} s, beside {beside.seconds:.1f} s: {beside.seconds / alone.seconds:.2f}×")
    print(f"GPU seconds alone {alone.gpu_seconds}, beside {beside.gpu_seconds}")
    assert alone.statuses == beside.statuses == ["completed"] * _HONEST_JOBS
    assert beside.seconds < alone.seconds * _LONGER_THAN_ALONE
    assert sum(beside.gpu_seconds) < sum(alone.gpu_seconds) * _LONGER_THAN_ALONE
    assert stops == [0, 0]
    assert all("hyperparameters" in refusal or "the row" in refusal for refusal in refused), refused
    _assert_each_ended_with_its_sentence(world, liars, poisoned)
    _assert_bills_follow_the_clock(world, liars)
    assert world.count("select count(*) from training_jobs where user_id = %s and status = 'queued'", flooder) > 0


# ── the honest ones ─────────────────────────────────────────────────────────────────────────────────


def _train_honest_jobs(world: World) -> Outcome:
    began = time.monotonic()
    ids = world.queue([Plan(_HONEST_STEPS)] * _HONEST_JOBS)
    _until_ended(world, ids)
    seconds = time.monotonic() - began
    jobs = world.query("select status from training_jobs where id = any(%s::uuid[])", ids)
    costs = world.query(
        "select (details->>'gpu_seconds')::float as seconds from cost_records where job_id = any(%s::uuid[])", ids
    )
    assert len(costs) == _HONEST_JOBS
    return Outcome(seconds, [job["status"] for job in jobs], sorted(round(cost["seconds"], 1) for cost in costs))


def _until_ended(world: World, job_ids: list[str]) -> None:
    until(lambda: not world.unfinished(job_ids), f"{len(job_ids)} jobs end", state=lambda: world.unended(job_ids))


# ── the others ──────────────────────────────────────────────────────────────────────────────────────


def _queue_liars(world: World) -> dict[Lie, str]:
    # Each has its own user, so that the limit for a user delays none of the containers.
    return {lie: world.queue([Plan(10, seed=int(lie))], world.new_user())[0] for lie in Lie}


def _poison() -> list[dict[str, Any] | str]:
    """Unreadable hyperparameters as JSON text: nested too deeply, with too long a number, too large."""
    deep = '{"a":' * 1500 + "1" + "}" * 1500
    return [deep, '{"rank": ' + "9" * 5000 + "}", *(['{"note": "' + "x" * 20_000_000 + '"}'] * 4)]


def _leave_poisoned_rows(world: World) -> list[str]:
    """Insert rows as they were before the database refused them; returns their ids."""
    user = world.new_user()
    (ordinary,) = world.queue([Plan(1)], user)
    with world.supabase.postgres.connect() as connection:
        connection.execute("set session_replication_role = replica")
        rows = [
            connection.execute(
                "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
                " estimated_total_cost, created_at) select user_id, dataset_id, preset_id, %s::jsonb, gpu_config,"
                " total_epochs, estimated_total_cost, now() - interval '1 day' from training_jobs where id = %s"
                " returning id::text",
                (poison, ordinary),
            ).fetchone()
            for poison in _poison()
        ]
        _note_who_waits(connection, user)
    return [row[0] for row in rows if row]


def _note_who_waits(connection: psycopg.Connection[Any], user: str) -> None:
    """Note users as a migration does for rows that no trigger has seen: a claim looks only at noted users."""
    connection.execute(
        "insert into training_waiting_users as w (user_id, waits_since)"
        " select user_id, min(created_at) from training_jobs where user_id = %s and status = 'queued' group by 1"
        " on conflict (user_id) do update set waits_since = least(w.waits_since, excluded.waits_since)",
        (user,),
    )


def _send_poisoned_rows(world: World) -> list[str]:
    """Send the same rows as a signed-in user does through PostgREST; returns why each was refused.

    In SQL, as PostgREST would: the local stand-in parses the JSON by itself, and makes a long number a null.
    """
    user = world.new_user()
    (ordinary,) = world.queue([Plan(1)], user)
    (job,) = world.query("select dataset_id from training_jobs where id = %s", ordinary)
    refusals = []
    with world.supabase.postgres.connect() as connection:
        for poison in _poison():
            with pytest.raises(psycopg.Error) as refused:
                _insert_as(connection, user, job["dataset_id"], poison)
            refusals.append(str(refused.value.diag.message_primary))
    return refusals


def _insert_as(connection: psycopg.Connection[Any], user: str, dataset_id: Any, hyperparameters: Any) -> None:
    with connection.transaction():
        claims = json.dumps({"sub": user, "role": "authenticated"})
        connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
        connection.execute("set local role authenticated")
        connection.execute(
            "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
            " estimated_total_cost) values (%s, %s, 'custom', %s::jsonb, %s::jsonb, 1, 1)",
            (user, dataset_id, hyperparameters, json.dumps({"type": "A100-80GB", "count": 1})),
        )


def _flood_the_queue(world: World) -> str:
    """Queue fifty thousand jobs of one user, older than all others, which fail at once; returns the user's id."""
    user = world.new_user()
    (ordinary,) = world.queue([Plan(1)], user)
    with world.supabase.postgres.connect() as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
            " estimated_total_cost, created_at) select user_id, dataset_id, preset_id,"
            ' hyperparameters || \'{"base_model": "nobody/knows-it"}\', gpu_config, total_epochs,'
            " estimated_total_cost, now() - interval '2 days' + n * interval '1 second'"
            " from training_jobs, generate_series(1, %s) n where id = %s",
            (_FLOOD_JOBS, ordinary),
        )
        _note_who_waits(connection, user)
    return user


def _start_workers_with_health_ports(world: World) -> list[int]:
    """Start two new workers, each with its own health port; returns the ports."""
    ports = []
    world.crew.stop()
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
        world.crew.start({"LORA_WORKER_HTTP_PORT": str(ports[-1])})
    world.crew.await_start()
    return ports


@contextmanager
def _half_requests(ports: list[int]) -> Iterator[None]:
    """Open requests at the health ports and never finish them."""
    with ExitStack() as stack:
        for port in ports * _STRANGERS:
            # A worker may refuse or close such connections.
            with suppress(OSError):
                stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1))
                stranger.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Half: ")
        yield


def _until_hostile_work_is_under_way(world: World, liars: dict[Lie, str]) -> None:
    ids = list(liars.values())
    until(
        lambda: (
            world.count(
                "select count(distinct job_id) from training_runs where job_id = any(%s::uuid[])"
                " and (launched_at is not null or ended_at is not null)",
                ids,
            )
            == len(ids)
        ),
        "every lying container is launched",
    )


# ── what is asked of it ─────────────────────────────────────────────────────────────────────────────


def _assert_each_ended_with_its_sentence(world: World, liars: dict[Lie, str], poisoned: list[str]) -> None:
    for what, job_id in [*((lie.name, job) for lie, job in liars.items()), *(("poison", job) for job in poisoned)]:
        (job,) = world.query("select status, error_message from training_jobs where id = %s", job_id)
        print(f"{what}: {job['status']}: {job['error_message']}")
        assert job["status"] in ENDED, what
        if job["status"] == "failed":
            sentence = job["error_message"]
            assert sentence, what
            assert sentence.endswith("."), what
            assert len(sentence) < 1000, what
            assert "Traceback" not in sentence, what
    for lie, code in ((Lie.NO_PROOF, "not_proven"), (Lie.PROOF_OF_ANOTHER, "proof_refused")):
        codes = world.query("select error_code from training_runs where job_id = %s", liars[lie])
        assert {run["error_code"] for run in codes} == {code}, lie.name
    told = world.query("select measured from training_runs where job_id = %s", liars[Lie.IMPOSSIBLE_NUMBERS])
    for measured in (run["measured"] for run in told if run["measured"] is not None):
        assert (measured["evaluation"], measured["serving_name"]) == (None, None)
    failed = world.count(
        "select count(*) from training_jobs where id = any(%s::uuid[]) and status = 'failed'", poisoned
    )
    assert failed == len(poisoned)


def _assert_bills_follow_the_clock(world: World, liars: dict[Lie, str]) -> None:
    costs = world.query(
        "select c.amount, c.details, r.gpu_seconds, extract(epoch from r.ended_at - r.created_at) as wall_seconds"
        " from cost_records c join training_runs r on r.id::text = c.details->>'run_id'"
        " where c.job_id = any(%s::uuid[])",
        list(liars.values()),
    )
    assert costs
    for cost in costs:
        assert float(cost["gpu_seconds"]) <= float(cost["wall_seconds"]) + LEASE_SECONDS
        assert cost["details"]["gpu_count"] == 1
        assert float(cost["amount"]) < _MOST_DOLLARS
    launches = world.count(
        "select max(n) from (select count(*) as n from training_launches l join training_runs r on r.id = l.run_id"
        " where r.job_id = %s group by r.id) x",
        liars[Lie.INVENTED_IDS],
    )
    assert launches < 25, "invented ids make launches of a run without a limit"
    assert json.dumps([cost["details"] for cost in costs], allow_nan=False)
