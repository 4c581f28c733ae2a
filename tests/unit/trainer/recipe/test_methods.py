"""Every method that a job can choose is there, and no other is launched."""

from __future__ import annotations

import pytest

from lora_contract.hyperparameters import METHODS as CHOICES
from lora_worker.database.rows import parse_hyperparameters
from lora_worker.errors import PreflightError
from tests.unit.worker.database.test_job_keys import job


def test_every_method_that_a_job_can_choose_is_there() -> None:
    from lora_trainer.recipe.methods import METHODS

    assert set(METHODS) == set(CHOICES)


def test_earlier_adapter_is_named_by_either_key() -> None:
    for key in ("init_adapter", "parent_model_id"):
        assert parse_hyperparameters(job({key: "an-artifact"}), default_base_model="m").init_adapter == "an-artifact"


def test_unknown_method_is_refused_before_a_launch() -> None:
    with pytest.raises(PreflightError, match="method"):
        parse_hyperparameters(job({"method": "telepathy"}), default_base_model="m")


@pytest.mark.parametrize(
    ("method", "chosen", "told"),
    [
        ("sft", {"beta": 0.2}, ["Without effect: method sft has no beta."]),
        ("dpo", {"beta": 0.2, "desirable_weight": 2}, ["Without effect: method dpo has no desirable_weight."]),
        ("kto", {"beta": 0.2, "undesirable_weight": 2}, []),
        ("sft", {}, []),
    ],
)
def test_setting_that_a_method_does_not_have_is_told(method: str, chosen: dict[str, float], told: list[str]) -> None:
    from lora_trainer.recipe.methods import METHODS
    from lora_trainer.recipe.setup import settings_of_other_methods

    parameters = parse_hyperparameters(job({"method": method, **chosen}), default_base_model="m")
    assert settings_of_other_methods(METHODS[method], parameters) == told


def test_preference_methods_learn_more_slowly_unless_chosen_otherwise() -> None:
    def rate(**chosen: float | str | None) -> float:
        return parse_hyperparameters(job(chosen), default_base_model="m").learning_rate

    assert (rate(), rate(method="sft")) == (1e-4, 1e-4)
    assert (rate(method="dpo"), rate(method="kto", learning_rate=None)) == (1e-5, 1e-5)
    assert rate(method="dpo", learning_rate=3e-4) == 3e-4
