"""Which card a model needs follows from the plan's figures; unknown names are refused with those that may be meant."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from click.testing import Result
from typer.testing import CliRunner

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_worker.commands.cli import app
from lora_worker.database.rows import Job
from lora_worker.datasets.preflight import check, check_quantization, give_gpus
from lora_worker.errors import ArgumentError, PreflightError
from lora_worker.money.guide import needs_of
from lora_worker.money.pricing import load_prices
from lora_worker.money.speeds import load_throughput
from tests.commands import check_keys
from tests.documented import table_under
from tests.project import ROOT
from tests.unit.worker.money.test_estimate import TERMS

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line without any key or address, in an empty folder."""
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_PUBLISHABLE_KEY", "GPU_CLUSTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_memory_of_each_model_is_that_of_the_documented_plan() -> None:
    """`test_plan.py` holds that page against the trainer's plan, which the worker can't import."""
    page = table_under((ROOT / "docs" / "training.md").read_text(), "Models")
    planned = {
        name.strip("`"): float(cells["training, 4,096 tokens"].removesuffix(" GB")) for name, cells in page.items()
    }
    assert load_throughput()["memory_gb"] == planned
    assert set(planned) == set(TERMS.models)


@pytest.mark.parametrize(
    ("base", "gpu", "refused"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "RTX-A4000", "takes at least 18.1 GB in bf16, and RTX-A4000 has 16"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "RTX-4090", None),
        ("Qwen/Qwen2.5-0.5B-Instruct", "V100-32GB", "V100-32GB can't compute in bf16"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "A100-40GB", None),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "H200", "takes at least 168.5 GB"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "B200", None),
        ("a-base/nobody-knows", "RTX-A4000", None),
    ],
)
def test_unquantised_base_is_refused_where_it_cannot_fit(base: str, gpu: str, refused: str | None) -> None:
    price = next(price for price in load_prices() if price.type == gpu)
    check_quantization(Hyperparameters(base_model=base), price, GpuConfig())
    chosen = Hyperparameters(base_model=base, quantization="bf16")
    if refused is None:
        check_quantization(chosen, price, GpuConfig())
        return
    with pytest.raises(PreflightError, match=re.escape(refused)) as error:
        check_quantization(chosen, price, GpuConfig())
    assert "set it to auto or nf4" in str(error.value)


def test_unquantised_base_has_room_on_several_gpus_that_share_it() -> None:
    price = next(price for price in load_prices() if price.type == "H200")
    chosen = Hyperparameters(base_model="Qwen/Qwen3-Next-80B-A3B-Instruct", quantization="bf16")
    check_quantization(chosen, price, GpuConfig(count=2))
    with pytest.raises(PreflightError, match=re.escape("takes at least 168.5 GB in bf16")):
        check_quantization(chosen.model_copy(update={"use_dora": True}), price, GpuConfig(count=2))


async def test_unquantised_base_that_cannot_fit_is_refused_before_a_launch() -> None:
    chosen = {"base_model": "meta-llama/Meta-Llama-3-8B-Instruct", "quantization": "bf16"}
    job = Job(id=uuid4(), user_id=uuid4(), hyperparameters=chosen, gpu_config={"type": "RTX-A4000"})
    settings = SimpleNamespace(
        default_base_model=chosen["base_model"], base_models=(chosen["base_model"],), allow_fewer_gpus=False
    )
    with pytest.raises(PreflightError, match="RTX-A4000 has 16; set it to auto or nf4"):
        await check(
            cast(Any, SimpleNamespace(job=job)),
            cast(Any, SimpleNamespace(settings=settings, prices=load_prices())),
            cast(Any, SimpleNamespace(gpu_type=None, gpu_count=1, price_per_hour=None, takes_newer_gpus=True)),
        )


def test_a_7b_model_needs_no_80_gb_card() -> None:
    needs = needs_of("mistralai/Mistral-7B-Instruct-v0.2", TERMS, load_prices())
    assert min(card.memory_gb for card in needs.cards) == 16
    assert any(card.memory_gb <= 24 for card in needs.cards[:3]), "nor is a small card much dearer"


def test_only_offered_cards_with_the_memory_are_named_cheapest_first() -> None:
    for name in TERMS.models:
        needs = needs_of(name, TERMS, load_prices())
        assert all(card.memory_gb > needs.needed_gb for card in needs.cards)
        assert not {"V100-32GB", "A100-40GB"} & {card.gpu for card in needs.cards}
        prices = [card.usd_per_million_tokens.high for card in needs.cards]
        assert prices == sorted(prices)
        assert all(0 < card.usd_per_million_tokens.low < card.usd_per_million_tokens.high for card in needs.cards)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
    ],
)
def test_an_unknown_model_is_refused_with_the_one_that_is_meant(asked: str, meant: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"; {meant} may be meant")):
        needs_of(asked, TERMS, load_prices())


def test_guide_needs_no_settings(run: Run) -> None:
    done = run("plan", "--json")
    assert done.exit_code == 0, done.output
    listed = json.loads(done.stdout)
    check_keys("plan", listed)
    assert [entry["base_model"] for entry in listed] == list(TERMS.models)
    text = run("plan", "Qwen/Qwen3-8B").stdout
    assert "10 GB" in text
    assert "H200" in text
    assert "mistral" not in text
    assert run("plan", "nothing/like-it").exit_code == 2


def test_estimate_needs_no_settings(run: Run) -> None:
    done = run("estimate", "--pairs", "1000", "--base-model", "Qwen/Qwen3-8B", "--gpu", "RTX 4090", "--json")
    assert done.exit_code == 0, done.output
    check_keys("estimate", json.loads(done.stdout))
    assert "on 1 × A100-80GB" in run("estimate", "--pairs", "1000").stdout


def test_estimate_reads_the_settings_that_change_prices(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_WORKER_ENDPOINT_GPU_TYPE", "L4")
    assert "on 1 × L4" in run("estimate", "--pairs", "1000").stdout
    # A card that is named is what is asked about: whoever compares cards has an endpoint already.
    assert "on 1 × H100" in run("estimate", "--pairs", "1000", "--gpu", "H100").stdout
    assert "'abacus' is not in the price table" in run("estimate", "--pairs", "1000", "--gpu", "abacus").output
    monkeypatch.setenv("LORA_WORKER_ENDPOINT_GPU_COUNT", "many")
    wrong = run("estimate", "--pairs", "1000")
    assert wrong.exit_code == 2
    assert wrong.output.startswith("lora-worker: LORA_WORKER_ENDPOINT_GPU_COUNT")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--base-model", "qwen2.5-7b"], "Qwen/Qwen2.5-7B-Instruct may be meant"),
        (["--gpu", "RTX5090"], "'RTX5090' is not in the price table; RTX-4090 may be meant"),
        (["--gpu", "L4", "--base-model", "Qwen/Qwen3-Next-80B-A3B-Instruct"], "takes about 54 GB, and L4 has 24"),
    ],
)
def test_estimate_refuses_what_it_does_not_know(run: Run, arguments: list[str], sentence: str) -> None:
    done = run("estimate", "--pairs", "1000", *arguments)
    assert done.exit_code == 2
    assert sentence in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize("command", [("plan",), ("estimate", "--pairs", "10")])
def test_unreadable_price_table_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str]) -> None:
    monkeypatch.setenv("LORA_WORKER_PRICE_TABLE", "nowhere.toml")
    done = run(*command)
    assert done.exit_code == 2
    assert done.stderr.startswith("lora-worker: LORA_WORKER_PRICE_TABLE: nowhere.toml is not a usable price table")
    assert len(done.stderr.splitlines()) == 1


def test_estimate_of_pairs_costs_more_than_of_answers(run: Run) -> None:
    answers = {
        method: json.loads(run("estimate", "--pairs", "50000", "--gpu", "H100", "--method", method, "--json").stdout)
        for method in ("sft", "dpo", "kto")
    }
    highest = {method: answer["cost"]["high"] for method, answer in answers.items()}
    assert highest["sft"] < highest["kto"] < highest["dpo"]
    done = run("estimate", "--pairs", "5", "--method", "telepathy")
    assert (done.exit_code, "choose one of sft, dpo, kto" in done.stderr) == (2, True)


def test_job_for_more_gpus_than_there_are_is_refused_with_their_number() -> None:
    assert give_gpus(GpuConfig(count=2), 2, may_be_fewer=False).count == 2
    with pytest.raises(PreflightError, match="count is 4, and the endpoint has 2 GPUs for a job; set it to 2 or fewer"):
        give_gpus(GpuConfig(count=4), 2, may_be_fewer=False)
    with pytest.raises(PreflightError, match=r"count is 2, and the endpoint has 1 GPU for a job; set it to 1\."):
        give_gpus(GpuConfig(count=2), 1, may_be_fewer=False)
    assert give_gpus(GpuConfig(type="H100", count=4), 2, may_be_fewer=True) == GpuConfig(type="H100", count=2)
