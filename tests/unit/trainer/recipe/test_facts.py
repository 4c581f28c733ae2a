"""The figures of a finished training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from lora_contract.protocol import Point
from lora_trainer.recipe.callbacks import BestAdapter
from lora_trainer.recipe.facts import final_metrics

POINTS = [Point(step=1, epoch=1, training_loss=0.5, reward_margin=3.0, reward_accuracy=0.9)]


def metrics(best: BestAdapter) -> tuple[float | None, float | None]:
    found = final_metrics(cast("Any", SimpleNamespace(points=POINTS, best=best)))
    return found.final_reward_margin, found.final_reward_accuracy


def test_reward_that_is_not_known_of_what_is_held_out_is_not_told() -> None:
    # Held-out answers that were all rated good have no margin.
    assert metrics(BestAdapter(1, 0.4, {}, rewards={"reward_accuracy": 1.0})) == (None, 1.0)


def test_rewards_are_those_of_the_last_step_where_nothing_is_held_out() -> None:
    assert metrics(BestAdapter()) == (3.0, 0.9)
