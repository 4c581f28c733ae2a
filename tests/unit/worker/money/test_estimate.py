"""An estimate is a range of finite numbers with low below high, and refuses jobs above their limit."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_contract.batches import shape_batches
from lora_contract.hyperparameters import METHODS, Hyperparameters, Method
from lora_conversations.survey import Survey
from lora_worker.commands.estimate import format_estimate
from lora_worker.configuration.settings import DEFAULT_BASE_MODEL, Settings
from lora_worker.datasets import preflight
from lora_worker.errors import PreflightError
from lora_worker.money.estimate import Work, estimate
from lora_worker.money.pricing import load_prices
from lora_worker.money.speeds import load_throughput
from lora_worker.money.terms import Overhead, Terms, make_terms
from tests.project import ROOT

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"


def terms(**settings: Any) -> Terms:
    made = Settings(
        supabase_url="http://127.0.0.1:9",
        supabase_service_role_key="sb_secret_x",
        supabase_publishable_key="sb_publishable_x",
        _env_file=None,
        **settings,
    )
    return make_terms(made, load_prices(settings.get("price_table")))


TERMS = terms()
WORK = Work(tokens=1_000_000, pairs=1000, gpu_type="A100-80GB")
WORKS = st.builds(
    Work,
    tokens=st.one_of(st.none(), st.integers(0, 10**12)),
    pairs=st.one_of(st.none(), st.integers(0, 10**8)),
    pairs_per_conversation=st.floats(0, 100),
    epochs=st.integers(1, 20),
    batch_size=st.integers(1, 64),
    max_steps=st.one_of(st.none(), st.integers(1, 10**6)),
    gpus=st.integers(1, 8),
    base_model=st.sampled_from([None, "unknown/model", *TERMS.models]),
    gpu_type=st.sampled_from([*(gpu.type for gpu in TERMS.gpus), "NVIDIA A100-SXM4-80GB"]),
)


@given(work=WORKS, fee=st.sampled_from([0.0, 0.5]), gpus=st.integers(1, 8))
def test_every_estimate_is_a_range_of_finite_numbers(work: Work, fee: float, gpus: int) -> None:
    found = estimate(work, TERMS.model_copy(update={"storage_fee": fee, "endpoint_gpu_count": gpus}))
    if found is None:
        assert not work.tokens
        assert not work.pairs
        return
    assert 0 < found.seconds.low <= found.seconds.high < math.inf
    assert fee <= found.cost.low <= found.cost.high < math.inf


def test_preference_methods_cost_their_further_passes() -> None:
    """Of one epoch: dpo's reference reads both answers once; kto reads each batch twice more, and once for KL."""
    no_overhead = TERMS.model_copy(
        update={name: Overhead(once=0, each_epoch=0) for name in ("overhead_low", "overhead_high")}
    )

    def seconds(method: Method, epochs: int) -> float:
        found = estimate(dataclasses.replace(WORK, tokens=10**9, method=method, epochs=epochs), no_overhead)
        assert found is not None
        assert found.tokens == 10**9
        return found.seconds.high

    sft = seconds("sft", 1)
    assert seconds("dpo", 1) / sft == pytest.approx(1.4, rel=1e-3)
    assert seconds("kto", 1) / sft == pytest.approx(2.2, rel=1e-3)
    # What is done once is not done in each epoch.
    assert seconds("dpo", 4) / sft == pytest.approx(4.4, rel=1e-3)


def test_pair_without_counted_tokens_has_two_sequences() -> None:
    found = [estimate(Work(pairs=10, gpu_type="H100", method=method), TERMS) for method in METHODS]
    assert [one.tokens // TERMS.tokens_per_pair for one in found if one] == [10, 20, 10]


@given(work=WORKS, more=st.integers(1, 10**9))
def test_more_tokens_or_epochs_never_take_less(work: Work, more: int) -> None:
    work = dataclasses.replace(work, tokens=work.tokens or 1, pairs=work.pairs or 1, max_steps=None)
    first = estimate(work, TERMS)
    assert first is not None
    for greater in (
        dataclasses.replace(work, tokens=(work.tokens or 0) + more),
        dataclasses.replace(work, epochs=work.epochs + 1),
    ):
        second = estimate(greater, TERMS)
        assert second is not None
        assert first.seconds.low <= second.seconds.low
        assert first.seconds.high <= second.seconds.high
        assert first.cost.high <= second.cost.high


def test_high_end_is_the_applications_formula_at_the_slow_speed() -> None:
    """steps × epochs × (tokens / pairs × batch) / throughput + 600 + 300 × epochs + 300."""
    work = dataclasses.replace(WORK, pairs=1001, batch_size=4, epochs=3, base_model=LLAMA)
    found = estimate(work, TERMS)
    steps, slow = math.ceil(1001 / 4) * 3, 13936 * 312 / 989 * 0.4
    seconds = steps * (1_000_000 / 1001 * 4) / slow + 600 + 300 * 3 + 300
    assert found is not None
    assert found.seconds.high == math.ceil(seconds)
    assert found.tokens_per_second.low == pytest.approx(slow)
    assert found.cost.high == pytest.approx(seconds / 3600 * 2.74, abs=0.011)


def test_an_estimate_counts_the_trainers_own_steps() -> None:
    """1,000 answers in conversations of 10, 4 per step: each step is one conversation, so an epoch has 100 steps."""
    work = dataclasses.replace(WORK, pairs_per_conversation=10, batch_size=4, epochs=1)
    whole, capped, half = (estimate(dataclasses.replace(work, max_steps=steps), TERMS) for steps in (None, 100, 50))
    assert whole is not None
    assert capped is not None
    assert half is not None
    assert capped.seconds.low == whole.seconds.low
    assert half.seconds.low < whole.seconds.low
    shape = shape_batches([500] * 100, 1000, batch_size=4, max_length=2048, packing=False)
    assert shape.total_steps(epochs=1, max_steps=None) == 100


def test_uncounted_tokens_are_assumed_as_200_per_pair() -> None:
    found = estimate(Work(pairs=50, gpu_type="H100"), TERMS)
    assert found is not None
    assert found.tokens == 10_000


def test_larger_base_takes_longer_and_an_unknown_one_is_the_reference() -> None:
    sizes = [
        estimate(dataclasses.replace(WORK, base_model=name), TERMS)
        for name in (DEFAULT_BASE_MODEL, "unknown/model", LLAMA, "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B")
    ]
    default, unknown, reference, large = [found.seconds for found in sizes if found]
    assert unknown == reference
    assert (default.low, default.high) < (reference.low, reference.high) < (large.low, large.high)


def test_estimate_uses_the_endpoints_gpu_not_the_requested_one() -> None:
    found = estimate(WORK, terms(endpoint_gpu_type="L40S", endpoint_gpu_count=2))
    assert found is not None
    assert (found.gpu_type, found.gpu_count, found.price_per_hour) == ("L40S", 2, 1.91)


def test_more_gpus_of_the_endpoint_cost_more_and_take_no_less_time() -> None:
    """A training computes on as many as it asks for, and all are billed."""
    one, two = (estimate(WORK, terms(endpoint_gpu_count=count)) for count in (1, 2))
    assert one is not None
    assert two is not None
    assert two.seconds == one.seconds
    assert two.cost.high == pytest.approx(2 * one.cost.high, abs=0.011)


def test_gpus_that_share_the_steps_shorten_the_lowest_time_alone() -> None:
    one, two = (estimate(dataclasses.replace(WORK, gpus=gpus), terms(endpoint_gpu_count=2)) for gpus in (1, 2))
    assert one is not None
    assert two is not None
    overhead = TERMS.overhead_low.once + TERMS.overhead_low.each_epoch * WORK.epochs
    assert two.seconds.low - overhead == pytest.approx((one.seconds.low - overhead) / 2, abs=1)
    assert two.seconds.high == one.seconds.high


def test_gpus_gain_no_more_than_the_examples_that_a_step_has() -> None:
    """Steps of two conversations keep two GPUs busy, however many there are."""
    work = dataclasses.replace(WORK, pairs_per_conversation=2, batch_size=4)
    one, two, eight = (estimate(dataclasses.replace(work, gpus=gpus), TERMS) for gpus in (1, 2, 8))
    assert one is not None
    assert two is not None
    assert eight is not None
    assert one.seconds.low > two.seconds.low == eight.seconds.low
    alone = dataclasses.replace(work, pairs_per_conversation=4)
    assert estimate(dataclasses.replace(alone, gpus=8), TERMS) == estimate(alone, TERMS)


def test_every_priced_gpu_has_a_speed_and_every_model_a_size() -> None:
    assert load_throughput()["cards"].keys() == {price.type for price in load_prices()}
    assert load_throughput()["models"].keys() == set(Settings.model_fields["base_models"].default)


def test_unmeasured_gpu_is_estimated_between_all_others(tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('[[gpu]]\ntype = "Abacus"\nprice_per_hour = 1.0\nmemory_gb = 8\nnames = ["Abacus"]\n')
    found = estimate(dataclasses.replace(WORK, gpu_type="abacus"), terms(price_table=table))
    assert found is not None
    assert found.seconds.low < found.seconds.high


def survey(tokens: int, examples: int = 1000, answers: int = 1000) -> Survey:
    found = SimpleNamespace(tokens=tokens, examples=examples, answers=answers, conversations=examples)
    return cast(Survey, found)


@pytest.mark.fault(30)
def test_job_above_its_limit_is_refused_with_both_figures() -> None:
    chosen = Hyperparameters(epochs=10, max_length=131072)
    preflight.check_estimate(chosen, survey(100_000), "A100-80GB", terms(max_cost_per_job=5))
    with pytest.raises(PreflightError, match=r"at least \$9.+ a job may cost \$5\.00; choose fewer") as refused:
        preflight.check_estimate(chosen, survey(10_000_000), "A100-80GB", terms(max_cost_per_job=5))
    assert "\n" not in str(refused.value)
    with pytest.raises(PreflightError, match=r"at least 3\.5 hours on 1 × A100-80GB, and may take 2\.0; choose fewer"):
        preflight.check_estimate(chosen, survey(10_000_000), "A100-80GB", terms(max_run_seconds=7200))
    # The training may end after its first epoch, and rows are cut at the maximum length.
    early = chosen.model_copy(update={"early_stopping_patience": 1})
    preflight.check_estimate(early, survey(10_000_000), "A100-80GB", terms(max_cost_per_job=5))
    short = chosen.model_copy(update={"max_length": 64})
    preflight.check_estimate(short, survey(10_000_000), "A100-80GB", terms(max_cost_per_job=5))


def test_base_whose_answers_are_rows_of_their_own_pays_for_each_history() -> None:
    talks = survey(100_000, answers=4000)
    whole, apart = (
        preflight.expect_work(Hyperparameters(base_model=base), talks, "A100-80GB")
        for base in ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-8B")
    )
    assert apart.tokens == pytest.approx(2.5 * whole.tokens, rel=0.01)
    assert apart.pairs == 4 * whole.pairs


def test_estimate_command_prints_both_ends_and_assumptions() -> None:
    found = estimate(WORK, terms(storage_fee=0.5))
    assert found is not None
    lines = format_estimate(dataclasses.asdict(found)).splitlines()
    assert lines[0] == (
        "8 min to 57 min, $0.86 to $3.11, on 1 × A100-80GB ($2.74 an hour each): 1,000,000 tokens an epoch."
    )
    assert lines[1].endswith("A100-80GB with this base has not been measured.")
    assert any("$0.50" in line for line in lines)


def test_tables_cite_the_source_of_their_figures() -> None:
    folder = ROOT / "worker/lora_worker/money"
    for name in ("prices.toml", "throughput.toml"):
        text = (folder / name).read_text()
        assert tomllib.loads(text)["updated"]
        assert text.startswith("#")
