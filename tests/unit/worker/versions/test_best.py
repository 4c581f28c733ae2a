"""The best version has the lowest loss where losses can be compared, else the highest gain, and a sentence says why."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lora_worker.versions.best import choose_best
from lora_worker.versions.version import Version
from tests.unit.worker.versions.made import figures, version


def other_data(base: float, tuned: float, **columns: Any) -> Version:
    return version(base, tuned, told={"dataset_sha256": "b" * 64}, **columns)


def test_lowest_loss_wins_on_the_same_data_and_base() -> None:
    worse, best, middle = version(2.0, 1.6), version(2.0, 1.2, version="1.1.0"), version(2.0, 1.4)
    for order in itertools.permutations([worse, best, middle]):
        verdict = choose_best(order)
        assert verdict.best is best
    assert verdict.sentence == (
        f"1.1.0 ({str(best.row['job_id'])[:8]}) has the lowest held-out loss of 3 versions on the same data and base: "
        "1.2 (base: 2)."
    )


def test_lower_loss_on_other_data_does_not_win_by_itself() -> None:
    """Data that is easy for the base leaves a lower loss: 0.5 of 0.55 is less than 1.5 of 3."""
    easy, hard = version(0.55, 0.5), other_data(3.0, 1.5)
    verdict = choose_best([easy, hard])
    assert verdict.best is hard
    assert "50.0 % of the held-out loss" in verdict.sentence
    assert "differ in data or base" in verdict.sentence


@pytest.mark.parametrize("changed", [{"base_model": "other/base"}, {"told": {"dataset_sha256": None}}])
def test_losses_of_other_or_unknown_bases_and_data_are_not_compared(changed: dict[str, Any]) -> None:
    low, gained = version(1.1, 1.0), version(3.0, 1.5, **changed)
    assert choose_best([low, gained]).best is gained
    assert choose_best([version(1.1, 1.0, **changed), version(3.0, 1.5, **changed)]).best is not None


def test_same_content_under_another_dataset_is_compared_by_loss() -> None:
    low, high = version(2.0, 1.2, dataset_id="one"), version(2.0, 1.4, dataset_id="two")
    assert "on the same data" in choose_best([high, low]).sentence


def test_newest_of_equal_versions_wins() -> None:
    newest, middle, oldest = version(2.0, 1.5), version(2.0, 1.4995), version(2.0, 1.9)
    verdict = choose_best([newest, middle, oldest])
    assert verdict.best is newest
    assert "of 2 that are as good it is the newest" in verdict.sentence
    equal = [version(2.0, 1.5), other_data(4.0, 3.0)]
    assert choose_best(equal).best is equal[0]


@pytest.mark.parametrize(
    ("unfit", "why"),
    [
        (version(None), "it was not compared with its base on held-out conversations"),
        (version(2.0, 0.1, told={"application": None}), "no proof says that its adapter is applied"),
        (version(2.0, 0.1, told={"guard_passed": False}), "it made the model worse on general text"),
        (version(2.0, 2.1), "it is not better than its base"),
        (version(2.0, 2.0), "it is not better than its base"),
        (version(0.0, 0.0), "it was not compared with its base on held-out conversations"),
    ],
)
def test_unfit_version_is_never_the_best(unfit: Version, why: str) -> None:
    alone = choose_best([unfit])
    assert (alone.best, alone.sentence) == (None, f"The only version can't be called the best: {why}.")
    good = version(2.0, 1.9)
    verdict = choose_best([unfit, good])
    assert verdict.best is good
    assert "1 version can't be compared or did worse" in verdict.sentence


def test_reasons_of_all_are_told_where_none_is_the_best() -> None:
    verdict = choose_best([version(2.0, 2.1), version(None), version(2.0, 2.2)])
    assert verdict.sentence == (
        "None of the 3 versions can be called the best: it is not better than its base, or it was not compared with "
        "its base on held-out conversations."
    )


def test_deleted_versions_count_for_nothing() -> None:
    assert choose_best([version(2.0, 0.1, deleted=True)]).sentence == "There is no version."
    kept = version(2.0, 1.9)
    verdict = choose_best([version(2.0, 0.1, deleted=True), kept])
    assert verdict.best is kept
    assert verdict.sentence.endswith("lowers the held-out loss from 2 to 1.9.")


def test_gain_that_may_be_chance_is_said() -> None:
    unsure = version(figures=figures(2.0, 1.9, held_out_gain_low=-0.1, held_out_gain_high=0.3))
    verdict = choose_best([unsure])
    assert verdict.best is unsure
    assert "its gain may be chance" in verdict.sentence
