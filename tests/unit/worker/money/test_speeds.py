"""The table of speeds holds what docs/performance.md measured; the rest follows from it by the stated rules."""

from __future__ import annotations

import dataclasses

import pytest

from lora_contract.hyperparameters import Hyperparameters
from lora_worker.commands.estimate import format_estimate
from lora_worker.datasets.preflight import check_estimate, current_terms
from lora_worker.errors import PreflightError
from lora_worker.money.estimate import estimate
from lora_worker.money.guide import needs_of
from lora_worker.money.pricing import load_prices
from lora_worker.money.speeds import RunSpeed, base_size, card_speed, load_throughput
from tests.documented import table_under
from tests.project import ROOT
from tests.scripted import FakeQueue, make_services
from tests.unit.worker.money.test_estimate import LLAMA, TERMS, WORK, survey

TABLE = load_throughput()
PAGE = (ROOT / "docs" / "performance.md").read_text()
MIXTURE, LARGE_MIXTURE = "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-Next-80B-A3B-Instruct"
MEASURED = {
    part: float(cells["tokens/s"].replace(",", "")) for part, cells in table_under(PAGE, "As the trainer is").items()
}


def measured(words: str) -> float:
    (found,) = (speed for part, speed in MEASURED.items() if words in part)
    return found


def test_each_speed_of_the_table_is_in_the_documented_measurements() -> None:
    assert [run["tokens_per_second"] for run in TABLE["benchmark"]] == [
        measured("`llama-nf4`"),
        measured("qwen3-30b-nf4"),
    ]
    assert {run["gpu"] for run in TABLE["benchmark"]} == {"H200"}
    assert TABLE["same_trainer"]["H200"] == measured("`llama-nf4-before`")
    assert f"{TABLE['same_trainer']['H100']:,}" in PAGE


def test_measured_pairs_are_estimated_around_their_measurement() -> None:
    for run in TABLE["benchmark"]:
        gpu = TERMS.gpu(run["gpu"])
        assert gpu is not None
        speed = TERMS.speed(run["base_model"], gpu)
        assert speed.source == "benchmark"
        assert speed.high == pytest.approx(run["tokens_per_second"] * TABLE["range"]["faster"])
        assert speed.low < run["tokens_per_second"]


def test_a_mixture_of_experts_is_neither_its_active_nor_all_its_parameters() -> None:
    for name in (MIXTURE, LARGE_MIXTURE):
        known, size = TABLE["models"][name], base_size(name, TABLE)
        assert known["active"] < size.low < size.high < known["total"]
    assert base_size(MIXTURE, TABLE).low == pytest.approx(8.0 * 13936 / 11754)
    assert base_size(LARGE_MIXTURE, TABLE).high > base_size(MIXTURE, TABLE).high, "more experts are unpacked"


def test_cards_without_a_measurement_range_wider_than_the_measured_one() -> None:
    wide = {card: high / low for card in TABLE["cards"] for low, high in [card_speed(card, TABLE)]}
    assert min(wide, key=lambda card: round(wide[card], 6)) in ("H200", "H100")
    assert all(ratio >= wide["H200"] - 1e-9 for ratio in wide.values())
    slow, fast = card_speed("Abacus", TABLE)
    assert all(slow <= low and high <= fast for low, high in (card_speed(card, TABLE) for card in TABLE["cards"]))
    # The one ratio of two cards that was measured lies between those of their data sheets, as the rule for others says.
    h100, h200 = TABLE["cards"]["H100"], TABLE["cards"]["H200"]
    ratio = TABLE["same_trainer"]["H100"] / TABLE["same_trainer"]["H200"]
    assert h100["gb_per_second"] / h200["gb_per_second"] < ratio < h100["tflops"] / h200["tflops"]


def test_finished_runs_come_before_the_table_for_their_base_and_gpu_alone() -> None:
    work = dataclasses.replace(WORK, base_model=LLAMA, gpu_type="L4")
    learned = TERMS.with_measured(LLAMA, "L4", RunSpeed(tokens_per_second=900, runs=7))
    before, after = estimate(work, TERMS), estimate(work, learned)
    assert before is not None
    assert after is not None
    assert (before.speed_source, before.speed_runs) == ("derived", 0)
    assert (after.speed_source, after.speed_runs) == ("runs", 7)
    assert (after.tokens_per_second.low, after.tokens_per_second.high) == (900 * 0.6, 900 * 1.5)
    assert "540 to 1,350 tokens a second, by the median of 7 finished runs of this base on L4 here." in format_estimate(
        dataclasses.asdict(after)
    )
    for other in (dataclasses.replace(work, gpu_type="A40"), dataclasses.replace(work, base_model="Qwen/Qwen3-8B")):
        assert estimate(other, learned) == estimate(other, TERMS)


class Learned(FakeQueue):
    """A database with finished runs of one base on one GPU."""

    async def training_run_speed(self, base_model: str, gpu_type: str) -> RunSpeed | None:
        known = (base_model, gpu_type) == (TERMS.default_base_model, "H100")
        return RunSpeed(tokens_per_second=10, runs=3) if known else None


async def test_the_workers_own_checks_ask_for_the_speed_of_finished_runs() -> None:
    services = make_services(queue=Learned())
    price = {price.type: price for price in load_prices()}
    learned = await current_terms(services, None, price["H100"], services.places.default)
    assert learned.speed(None, price_gpu := TERMS.gpus[2]).source == "runs"
    assert price_gpu.type == "H100"
    chosen = Hyperparameters(max_length=131072)
    check_estimate(chosen, survey(1_000_000), "H100", services.terms)
    with pytest.raises(PreflightError, match="would cost at least"):
        check_estimate(chosen, survey(1_000_000), "H100", learned)
    other = await current_terms(services, None, price["L4"], services.places.default)
    assert other == services.terms.model_copy(update={"endpoint_gpu_type": "L4"})


def test_the_guide_says_which_prices_rest_on_a_measurement() -> None:
    sources = {card.gpu: card.speed_source for card in needs_of(MIXTURE, TERMS, load_prices()).cards}
    assert sources.pop("H200") == "benchmark"
    assert set(sources.values()) == {"derived"}
