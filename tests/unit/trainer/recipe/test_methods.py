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
