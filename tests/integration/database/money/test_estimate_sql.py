"""The estimate that the application asks the database for is the worker's own, to the last digit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st

from lora_contract.hyperparameters import METHODS, Hyperparameters, Method
from lora_worker.database.migrations import migrate
from lora_worker.launchers.places import Place, Places
from lora_worker.money.estimate import Work, estimate
from lora_worker.money.places import price_at, terms_at, terms_of_places
from lora_worker.money.pricing import load_prices
from lora_worker.money.speeds import RunSpeed
from lora_worker.money.terms import Terms
from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row
from tests.processes.stage import Stage
from tests.unit.worker.money.test_estimate import TERMS, WORKS, terms

LONG = {"num_epochs": 2, "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1}
SHORT = {"epochs": 2, "rank": 8, "batch_size": 4, "learning_rate": 1e-4}


@pytest.fixture
def db(database: str) -> Iterator[Database]:
    connected = Database(database)
    publish(connected, terms())
    yield connected
    connected.close()


def publish(db: Database, made: Terms) -> bool:
    return bool(db.call("publish_training_terms", made.model_dump(mode="json"), "w1"))


def dataset(db: Database, user: UUID, **columns: Any) -> UUID:
    made = db.dataset(user)
    for name, value in columns.items():
        db.rows(f"update datasets set {name} = %s where id = %s", value, made)
    return made


def insert(db: Database, dataset_id: UUID, user: UUID, chosen: Any, gpu: Any, cost: float = 1) -> Row:
    return db.row(
        "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
        " estimated_total_cost) values (%s, %s, 'custom', %s, %s, 2, %s) returning *",
        user, dataset_id, json.dumps(chosen), json.dumps(gpu), cost,
    )  # fmt: skip


def in_sql(db: Database, made: Terms, work: Work) -> Row | None:
    """`training_estimate` with the values that the worker would use."""
    found: Row | None = db.row(
        "select training_estimate(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) as answer",
        json.dumps(made.model_dump(mode="json")),
        work.tokens, work.pairs, work.pairs_per_conversation, work.epochs, work.batch_size, work.max_steps,
        work.base_model, work.gpu_type, work.gpus,
    )["answer"]  # fmt: skip
    return found


def in_python(made: Terms, work: Work) -> Row | None:
    found = estimate(work, made)
    return None if found is None else json.loads(json.dumps(dataclasses.asdict(found)))


LEARNED = RunSpeed(tokens_per_second=1234.5, runs=4)
OFFERS = [
    TERMS,
    terms(storage_fee=0.37, endpoint_gpu_count=3),
    terms(endpoint_gpu_type="RTX 4090").with_measured(TERMS.default_base_model, "RTX-4090", LEARNED),
    TERMS.with_measured("unknown/model", "A40", LEARNED),
    TERMS.with_measured(TERMS.default_base_model, "H100", LEARNED),
]
GPU_NAMES = st.lists(
    st.one_of(
        st.sampled_from([name for gpu in TERMS.gpus for name in (gpu.type, *gpu.names)]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5),
    ),
    max_size=4,
).map("".join)
SHAPES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("epochs", "num_epochs"), st.one_of(st.none(), st.integers(1, 20))),
        **dict.fromkeys(("rank", "lora_rank"), st.one_of(st.none(), st.integers(4, 128))),
        **dict.fromkeys(("alpha", "lora_alpha"), st.one_of(st.none(), st.integers(1, 1024))),
        **dict.fromkeys(("dropout", "lora_dropout"), st.one_of(st.none(), st.sampled_from([0, 0.05, 0.25]))),
        "batch_size": st.one_of(st.none(), st.integers(1, 64)),
        "learning_rate": st.sampled_from([1e-4, 0.00025]),
        "base_model": st.sampled_from([None, "org/base"]),
        "method": st.sampled_from([None, *METHODS]),
        "packing": st.sampled_from([None, True, False]),
    },
)
many = tries(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(work=WORKS, name=st.one_of(st.none(), GPU_NAMES), made=st.sampled_from(OFFERS))
def test_sql_and_python_estimates_agree_on_any_work(db: Database, work: Work, name: str | None, made: Terms) -> None:
    work = dataclasses.replace(work, gpu_type=name or work.gpu_type)
    assert in_sql(db, made, work) == in_python(made, work)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tokens", [None, 123_457])
def test_sql_and_python_agree_on_each_method(db: Database, method: Method, tokens: int | None) -> None:
    made = dataset(db, db.user(), total_tokens=tokens, total_training_pairs=1234, avg_turns_per_conversation=6)
    in_database = db.call(
        "estimate_training_cost", made, {"method": method, "epochs": 3, "batch_size": 4}, {"type": "H100"}
    )
    work = Work(tokens=tokens, pairs=1234, pairs_per_conversation=3, epochs=3, batch_size=4, gpu_type="H100",
                method=method)  # fmt: skip
    found = in_python(TERMS, work)
    assert found is not None
    assert {key: in_database[key] for key in found} == found


@many
@given(name=GPU_NAMES)
def test_sql_and_python_find_the_same_gpu_for_any_name(db: Database, name: str) -> None:
    in_python = TERMS.gpu(name)
    in_sql = db.call("training_gpu", TERMS.model_dump(mode="json"), name)
    assert in_sql == (in_python and in_python.model_dump(mode="json"))


@many
@given(chosen=SHAPES)
def test_row_with_both_shapes_reads_as_the_one_before(db: Database, chosen: Row) -> None:
    whole = db.call("training_both_shapes", TERMS.model_dump(mode="json"), chosen)
    sent = {key: value for key, value in chosen.items() if value is not None}
    before, after = Hyperparameters.model_validate(sent), Hyperparameters.model_validate(whole)
    assert after.model_dump() == {
        **before.model_dump(),
        "alpha": before.lora_alpha,
        "base_model": before.base_model or TERMS.default_base_model,
    }
    assert whole.items() >= sent.items()
    assert {"num_epochs", "lora_rank", "lora_alpha", "lora_dropout", "learning_rate", "batch_size"} <= whole.keys()


def test_sql_and_python_estimates_agree_on_a_grid(db: Database) -> None:
    sizes = [(None, 7), (1_234_567, 1003), (999, None), (0, 0), (None, None), (10**12, 3)]
    chosen = itertools.product(
        sizes,
        (1, 3.7),
        (1, 3),
        (1, 7, 64),
        (None, 5),
        (None, "Qwen/Qwen3-30B-A3B-Instruct-2507", "unknown/model"),
    )
    gpus = itertools.cycle(["A100-80GB", "NVIDIA H100 80GB HBM3", "l4", "Abacus", None])
    offers = itertools.cycle(
        [*OFFERS, *(TERMS.with_measured("Qwen/Qwen3-30B-A3B-Instruct-2507", gpu, LEARNED) for gpu in ("H100", "L4"))]
    )
    answered, sources = 0, set()
    for ((tokens, pairs), together, epochs, batch, max_steps, base), gpu, made in zip(
        chosen, gpus, offers, strict=False
    ):
        work = Work(tokens, pairs, together, epochs, batch, max_steps, base, gpu)
        assert in_sql(db, made, work) == in_python(made, work), work
        found = in_python(made, work)
        answered += found is not None
        sources |= {found["speed_source"]} if found else set()
    assert answered > 100
    assert sources == {"runs", "derived"}


def test_terms_in_the_database_are_the_workers_and_written_once(db: Database) -> None:
    made = terms()
    assert db.row("select document from training_terms")["document"] == made.model_dump(mode="json")
    assert not publish(db, made)
    assert publish(db, terms(storage_fee=0.5))
    assert db.row("select count(*) from training_terms")["count"] == 1


def test_only_the_datasets_owner_gets_an_estimate(db: Database) -> None:
    user, stranger = db.user(), db.user()
    counted = dataset(db, user, total_tokens=1_000_000, total_training_pairs=1000, avg_turns_per_conversation=8)
    work = Work(tokens=1_000_000, pairs=1000, pairs_per_conversation=4, epochs=2, batch_size=4, gpu_type="H100")
    expected = in_python(terms(), work)
    assert expected is not None
    arguments = (counted, SHORT, {"type": "H100", "count": 1})
    assert db.call("estimate_training_cost", *arguments) == {**expected, "exceeds_limit": False}
    assert as_user(db, user, *arguments) == {**expected, "exceeds_limit": False}
    assert as_user(db, user, counted, LONG, {"gpu_type": "H100"}) == {**expected, "exceeds_limit": False}
    assert as_user(db, stranger, *arguments) is None
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_user(db, user, *arguments, role="anon")
    publish(db, terms(max_cost_per_job=0.1))
    assert as_user(db, user, *arguments)["exceeds_limit"] is True
    db.rows("delete from training_terms")
    assert as_user(db, user, *arguments) is None


def as_user(db: Database, user: UUID, *arguments: Any, role: str = "authenticated") -> Any:
    with db.connection.transaction():
        claims = json.dumps({"sub": str(user), "role": role})
        db.connection.execute("select set_config('request.jwt.claims', %s, true)", [claims])
        db.connection.execute(f"set local role {role}")
        return db.call("estimate_training_cost", *arguments)


COUNTED = {"total_tokens": 1_000_000, "total_training_pairs": 1000, "avg_turns_per_conversation": 4}
COUNTED_WORK = Work(tokens=1_000_000, pairs=1000, pairs_per_conversation=2, epochs=2, gpu_type="H100")


@pytest.mark.parametrize(
    ("gpu", "gpus"),
    [({}, 1), ({"count": 2}, 2), ({"num_gpus": 2}, 2), ({"count": None, "num_gpus": 2}, 2), ({"count": 8}, 4)],
    ids=str,
)
def test_estimate_is_that_of_as_many_gpus_as_the_job_gets(db: Database, gpu: Row, gpus: int) -> None:
    made = terms(endpoint_gpu_count=4)
    publish(db, made)
    told = db.call("estimate_training_cost", dataset(db, db.user(), **COUNTED), SHORT, {"type": "H100", **gpu})
    further = told["assumptions"][len(made.assumptions) :]
    expected = in_python(made, dataclasses.replace(COUNTED_WORK, gpus=gpus))
    assert expected is not None
    assert told == {**expected, "assumptions": [*made.assumptions, *further], "exceeds_limit": False}
    assert further == (
        ["The job asks for 8 GPUs; these are the figures of 4, which is what its endpoint has."] if gpus == 4 else []
    )


@pytest.mark.parametrize("asked", [1, 2, 8])
def test_estimate_holds_at_each_place_and_is_the_budgets_figure(db: Database, asked: int) -> None:
    """What the worker's own check says at the place where a job is launched lies within what its user was told."""
    here, there, own = (cast(Any, SimpleNamespace(endpoint=name)) for name in "abc")
    kinds = (Place("a", here, "H200", 2, 5.0), Place("b", there, "L4"), Place("c", own, None, 4))
    prices = load_prices()
    publish(db, terms_of_places(terms(), Places(*kinds), prices))
    user = db.user()
    gpu = {"type": "H100", "count": asked}
    counted = dataset(db, user, **COUNTED)
    job = insert(db, counted, user, {**SHORT, "max_steps": 200}, gpu, cost=0)
    told = db.call("estimate_training_job", job["id"])
    may_get = [place for place in kinds if place.gpu_count >= asked] or list(kinds)
    at = []
    for place in may_get:
        price = price_at(place, prices, "H100")
        assert price is not None
        work = dataclasses.replace(COUNTED_WORK, max_steps=200, gpus=min(asked, place.gpu_count))
        found = estimate(work, terms_at(terms(), price, place.gpu_count))
        assert found is not None
        at.append(found)
    dearest = max(at, key=lambda each: each.cost.high)
    assert told["cost"] == {"low": min(e.cost.low for e in at), "high": dearest.cost.high}
    assert told["seconds"] == {"low": min(e.seconds.low for e in at), "high": max(e.seconds.high for e in at)}
    assert (told["gpu_type"], told["gpu_count"]) == (dearest.gpu_type, dearest.gpu_count)
    assert (f"{dearest.gpu_count} × {dearest.gpu_type} at" in told["assumptions"][-1]) == (len(at) > 1)
    assert float(db.call("training_may_cost", "training_jobs", job["id"])) >= told["cost"]["high"]
    assert float(job["estimated_total_cost"]) == told["cost"]["high"]
    assert not told["exceeds_limit"]
    # A job is told to exceed its limit only where every place would refuse it.
    cheapest = min(e.cost.low for e in at)
    for limit, exceeds in ((cheapest, False), (cheapest - 0.01, True)):
        publish(db, terms_of_places(terms(max_cost_per_job=limit), Places(*kinds), prices))
        assert db.call("estimate_training_job", job["id"])["exceeds_limit"] is exceeds


def test_budget_reserves_for_a_dearer_place_with_fewer_gpus(db: Database) -> None:
    """A rule may lead there alone, and a worker may launch a job on fewer GPUs than it asks for."""
    here, there = (cast(Any, SimpleNamespace(endpoint=name)) for name in "ab")
    kinds = Places(Place("a", here, "H100", 4), Place("b", there, "H100", 1, 50.0))
    publish(db, terms_of_places(terms(max_cost_per_job=1000), kinds, load_prices()))
    user = db.user()
    job = insert(db, dataset(db, user, **COUNTED), user, SHORT, {"type": "H100", "count": 4}, cost=0)
    told = db.call("estimate_training_job", job["id"])
    assert told["gpu_count"] == 4
    assert float(db.call("training_may_cost", "training_jobs", job["id"])) > told["cost"]["high"]


@pytest.mark.parametrize(
    "odd",
    [[], "x", 3, {}, {"epochs": "many"}, {"epochs": 1e300, "batch_size": 0, "rank": None}, {"max_steps": -1}],
    ids=str,
)
def test_unusual_values_never_make_the_estimate_fail(db: Database, odd: Any) -> None:
    user = db.user()
    counted = dataset(db, user, total_tokens=1000)
    if not isinstance(odd, str):
        db.call("estimate_training_cost", counted, json.dumps(odd), json.dumps(odd))
    assert insert(db, counted, user, odd, odd)["status"] == "queued"


@pytest.mark.parametrize("chosen", [SHORT, LONG, {}, {"lora_rank": 8, "rank": None, "dropout": 0}], ids=str)
@pytest.mark.fault(26)
def test_new_job_gets_both_shapes_and_keeps_what_was_written(db: Database, chosen: Row) -> None:
    user = db.user()
    gpu = (
        {"gpu_type": "H100", "num_gpus": 1, "cost_per_gpu_hour": 5} if chosen is LONG else {"type": "H100", "count": 1}
    )
    job = insert(db, dataset(db, user), user, chosen, gpu)
    made = job["hyperparameters"]
    for short, long in (("epochs", "num_epochs"), ("rank", "lora_rank"), ("alpha", "lora_alpha")):
        assert made[short] == made[long] > 0
    assert made["dropout"] == made["lora_dropout"] == chosen.get("dropout", chosen.get("lora_dropout", 0.0))
    assert made["alpha"] == 2 * made["rank"]
    assert made["base_model"] == terms().default_base_model
    assert made.items() >= {key: value for key, value in chosen.items() if value is not None}.items()
    assert (job["gpu_config"]["type"], job["gpu_config"]["gpu_type"]) == ("H100", "H100")
    assert job["gpu_config"]["cost_per_gpu_hour"] == (5 if chosen is LONG else 4.18)
    assert job["gpu_config"]["gpu_memory_gb"] == 80


@pytest.mark.parametrize(
    "gpu", [{"type": "Abacus", "count": 2}, {"type": "H100", "cost_per_gpu_hour": "4.18"}], ids=str
)
def test_every_job_has_a_number_as_the_price_of_its_gpu(db: Database, gpu: Row) -> None:
    user = db.user()
    shown = insert(db, dataset(db, user), user, SHORT, gpu)["gpu_config"]
    assert shown["cost_per_gpu_hour"] == (0 if gpu["type"] == "Abacus" else 4.18)
    assert shown["gpu_type"] == gpu["type"]


def test_refused_job_from_before_the_first_prices_gets_a_price(db: Database) -> None:
    db.rows("delete from training_terms")
    run = db.claimed_run()
    before = db.job(run["job_id"])["gpu_config"]
    assert "cost_per_gpu_hour" not in before, "a 0 would stay when the launch knows the price"
    db.settle(run, "failed", error_message="No such GPU.")
    after = db.job(run["job_id"])["gpu_config"]
    assert after["cost_per_gpu_hour"] == 0
    assert after.items() >= before.items()


@pytest.mark.fault(30)
def test_job_inserted_without_an_estimate_gets_one(db: Database) -> None:
    user = db.user()
    counted = dataset(db, user, total_tokens=1_000_000, total_training_pairs=1000)
    gpu = {"type": "A100-80GB", "count": 1}
    high = estimate(Work(tokens=1_000_000, pairs=1000, epochs=2, gpu_type="A100-80GB"), terms())
    assert high is not None
    assert float(insert(db, counted, user, SHORT, gpu, cost=0)["estimated_total_cost"]) == high.cost.high
    assert float(insert(db, counted, user, SHORT, gpu, cost=7.5)["estimated_total_cost"]) == 7.5
    assert float(insert(db, dataset(db, user), user, SHORT, gpu, cost=0)["estimated_total_cost"]) == 0


def test_storage_fee_is_charged_for_finished_models_only(db: Database) -> None:
    run, _, _ = db.running_run()
    db.settle(run, storage_fee=0.5)
    cost = db.row("select * from cost_records where job_id = %s", run["job_id"])
    assert float(cost["amount"]) == 0.92
    assert cost["details"]["storage_fee"] == 0.5
    failed, _, _ = db.running_run()
    db.settle(failed, "failed")
    ended, _, _ = db.running_run()
    db.rows("update training_jobs set status = 'failed' where id = %s", ended["job_id"])
    db.settle(ended, storage_fee=0.5)
    for run in (failed, ended):
        assert "storage_fee" not in db.row("select * from cost_records where job_id = %s", run["job_id"])["details"]


def test_both_queues_get_the_same_estimate(db: Database, database: str) -> None:
    unknown = uuid4()
    assert db.call("estimate_training_job", unknown) is None
    pipeline = Pipeline(db)
    pipeline.create()
    migrate(database)
    user = db.user()
    counted = dataset(db, user, total_tokens=1_000_000, total_training_pairs=1000, avg_turns_per_conversation=8)
    work = Work(tokens=1_000_000, pairs=1000, pairs_per_conversation=4, epochs=2, batch_size=4, gpu_type="NVIDIA A40")
    expected = in_python(terms(), work)
    assert expected is not None
    older = insert(db, counted, user, SHORT, {"type": "NVIDIA A40", "count": 1})["id"]
    newer = pipeline.queue(user_id=user, dataset_id=counted, gpu_type="NVIDIA A40", batch_size=4)
    for job_id in (older, newer):
        assert db.call("estimate_training_job", job_id) == {**expected, "exceeds_limit": False}
    only_a_file = pipeline.queue(user_id=user, dataset_file_path="shared/training.jsonl")
    assert db.call("estimate_training_job", only_a_file) is None
    assert db.call("estimate_training_job", unknown) is None


def test_estimate_command_prints_the_databases_estimate(stage: Stage) -> None:
    stage.one_pass(LORA_WORKER_SLOTS="0")
    dataset_id = stage.user.upload(total_tokens=1_000_000)
    job_id = stage.user.queue(dataset_id)
    answer = run_cli(stage, "--job", job_id, "--json")
    assert json.loads(answer.stdout)["tokens"] == 1_000_000
    assert run_cli(stage, "--pairs", "1000", "--gpu", "H100").stdout.startswith("2 min to ")
    missing = run_cli(stage, "--job", str(uuid4()))
    assert (missing.returncode, "Traceback" in missing.stderr) == (1, False)
    nothing = run_cli(stage)
    assert (nothing.returncode, "--dataset-tokens, --pairs or --job" in nothing.stderr) == (2, True)


def run_cli(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    return stage.command("estimate", *arguments)
