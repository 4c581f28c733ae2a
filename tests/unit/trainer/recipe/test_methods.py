"""Every method that a job can choose is there, and no other is launched."""

from __future__ import annotations

import typing

import pytest

from lora_contract.hyperparameters import Hyperparameters
from lora_worker.database.rows import parse_hyperparameters
from lora_worker.errors import PreflightError
from tests.unit.worker.database.test_job_keys import job


def test_every_method_that_a_job_can_choose_is_there() -> None:
    from lora_trainer.recipe.methods import METHODS

    assert set(METHODS) == set(typing.get_args(Hyperparameters.model_fields["method"].annotation))


def test_unknown_method_is_refused_before_a_launch() -> None:
    with pytest.raises(PreflightError, match="method"):
        parse_hyperparameters(job({"method": "telepathy"}), default_base_model="m")
