"""The score of a training that was compared with its base: held-out conversations decide, and nobody's claim alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from lora_contract.evaluation import Comparison, Evaluation
from lora_contract.protocol import FinalMetrics, Manifest, Point
from lora_worker.runs.rows.figures import figures_of, quality_keys
from lora_worker.runs.rows.quality import has_proven_gain, rate_run
from tests.unit.worker.runs.comparisons import APPLICATION, compared, evaluated

FALLING = [Point(step=step, epoch=1, training_loss=loss) for step, loss in enumerate((4.0, 0.5), 1)]
FLAT = [Point(step=step, epoch=1, training_loss=4.0) for step in (1, 2)]


def rated(held_out: Comparison | None, points: list[Point] = FALLING, **general: Any) -> tuple[int, str]:
    report = rate_run("sft", points, FinalMetrics(), evaluated(held_out, **general))
    return report.overall_score, report.convergence_quality


@pytest.mark.parametrize(
    ("held_out", "expected"),
    [
        (compared(2.0, 1.55, (0.3, 0.6)), (5, "excellent")),
        (compared(2.0, 1.7, (0.2, 0.4)), (4, "good")),
        (compared(2.0, 1.9, (0.05, 0.15)), (3, "fair")),
        (compared(2.0, 1.95, (0.01, 0.09)), (2, "poor")),
    ],
)
def test_score_is_the_share_of_the_bases_loss_that_is_gone(held_out: Comparison, expected: tuple[int, str]) -> None:
    assert rated(held_out) == expected


@pytest.mark.parametrize(
    ("held_out", "points", "expected"),
    [
        (compared(2.0, 1.0, (-0.1, 2.1)), FLAT, (2, "poor")),
        (compared(2.0, 1.0, (0.0, 2.0)), FALLING, (2, "overfit")),
        (compared(2.0, 1.0, None), FALLING, (2, "unknown")),
        (compared(2.0, 2.0, (-0.1, 0.1)), FLAT, (1, "poor")),
        (compared(2.0, 2.6, (-0.9, -0.3)), FALLING, (1, "overfit")),
        (compared(2.0, 2.6, None), FALLING, (1, "unknown")),
    ],
)
def test_gain_that_may_be_chance_is_never_above_two(
    held_out: Comparison, points: list[Point], expected: tuple[int, str]
) -> None:
    assert rated(held_out, points) == expected
    assert not has_proven_gain(held_out)


def test_two_trainings_of_a_real_base_get_five_and_one() -> None:
    """The figures of docs/training.md: a captain's manner was learned; random words were learned by heart."""
    captain = compared(4.402, 2.815, (1.474, 1.705), accuracy=(0.165, 0.388), conversations=4, gain=1.589)
    assert rated(captain, change=-2.0) == (5, "excellent")
    noise = compared(10.88, 11.84, (-3.56, 1.64), accuracy=(0.0, 0.0), conversations=2)
    assert rated(noise, change=55.0, passed=False) == (1, "overfit")


def test_of_two_means_that_disagree_the_smaller_counts() -> None:
    """Many short conversations may be better while the long ones, with most of the tokens, are worse."""
    assert rated(compared(2.0, 2.1, (0.4, 0.6), gain=0.5)) == (1, "overfit")
    assert rated(compared(2.0, 1.0, (0.02, 0.18), gain=0.1)) == (3, "fair")


def test_fewer_right_tokens_cost_a_point() -> None:
    assert rated(compared(2.0, 1.5, (0.4, 0.6), accuracy=(0.5, 0.48))) == (4, "good")
    assert rated(compared(2.0, 1.5, (0.4, 0.6), accuracy=(0.5, 0.498))) == (5, "excellent")
    assert rated(compared(2.0, 1.95, (0.01, 0.09), accuracy=(0.5, 0.2))) == (2, "poor")


def test_damage_to_general_text_costs_a_point_of_every_method() -> None:
    damaged = evaluated(compared(2.0, 1.5, (0.4, 0.6)), 40.0, passed=False)
    assert rated(compared(2.0, 1.5, (0.4, 0.6)), change=40.0, passed=False) == (4, "good")
    assert rated(compared(2.0, 2.6, (-0.9, -0.3)), change=40.0, passed=False) == (1, "overfit")
    assert rated(compared(2.0, 1.5, (0.4, 0.6)), passed=None) == (5, "excellent")
    right = FinalMetrics(final_reward_accuracy=0.95)
    whole, less = (rate_run("dpo", FALLING, right, given) for given in (None, damaged))
    assert (whole.overall_score, less.overall_score, less.convergence_quality) == (5, 4, "good")
    assert whole.rewards == less.rewards
    # Nothing was held out: the curve is all there is.
    assert rated(None) == (5, "excellent")
    assert rated(None, change=40.0, passed=False) == (4, "good")


def test_without_a_comparison_the_applications_rule_stays() -> None:
    for given in (None, Evaluation()):
        report = rate_run("sft", FALLING, FinalMetrics(final_validation_loss=2.0), given)
        assert (report.overall_score, report.convergence_quality) == (4, "overfit")


def test_figures_are_numbers_with_their_counts_and_interval() -> None:
    assert quality_keys(evaluated(compared(), 3.25)) == {
        "base_validation_loss": 2.31, "tuned_validation_loss": 1.62, "held_out_gain": 0.69, "held_out_gain_low": 0.55,
        "held_out_gain_high": 0.83, "base_token_accuracy": 0.48, "tuned_token_accuracy": 0.61,
        "general_loss_change_percent": 3.25,
    }  # fmt: skip
    by_id = {figure["id"]: figure for figure in figures_of(evaluated(compared(), 3.25))}
    assert by_id["held_out_gain"]["raw"] == {"conversations": 34, "low": 0.55, "high": 0.83, "confidence": 0.95}
    assert by_id["tuned_validation_loss"]["raw"] == {"conversations": 34, "tokens": 4_000}
    assert by_id["general_loss_change_percent"]["raw"]["guard_passed"] is True
    assert {"held_out_gain_low", "held_out_gain_high"}.isdisjoint(quality_keys(evaluated(compared(interval=None))))
    assert quality_keys(None) == quality_keys(Evaluation()) == {}


def test_proof_that_can_not_be_true_is_none() -> None:
    told = {"job_id": "j", "run_id": "r", "files": []}
    for lie in ({"differing": 11}, {"modules": -1}, {"precision": "x" * 9_000}, {"adapter_sha256": "zebra"}):
        assert Manifest.model_validate({**told, "application": {**APPLICATION, **lie}}).application is None
    assert Manifest.model_validate({**told, "application": APPLICATION}).application is not None


@pytest.mark.parametrize(
    "lie",
    [
        {"gain": 0.9},
        {"gain": 5_000.0, "gain_low": None, "gain_high": None},
        {"gain_low": None},
        {"gain_low": 0.8, "gain_high": 0.6},
        {"base": {"loss": 2.31, "token_accuracy": 0.5, "tokens": 9}},
        {"conversations": 10**9},
        {"gain": math.nan},
        {"tuned": {"loss": "x" * 100_000, "token_accuracy": 0.5, "tokens": 4_000}},
        {"tuned": {"loss": 1.62, "token_accuracy": 60, "tokens": 4_000}},
    ],
    ids=str,
)
def test_figures_that_can_not_all_be_true_are_left_out_of_a_manifest(lie: dict[str, Any]) -> None:
    told = {**compared().model_dump(), **lie}
    with pytest.raises(ValidationError):
        Comparison.model_validate(told)
    manifest = Manifest.model_validate({"job_id": "j", "run_id": "r", "files": [], "evaluation": {"held_out": told}})
    assert manifest.evaluation is None
