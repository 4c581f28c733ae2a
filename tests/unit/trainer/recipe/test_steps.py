"""The parameter groups of the optimizer, and a step that is not begun."""

from types import SimpleNamespace

import pytest
import torch

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.recipe.steps import StepTrainer, loraplus_optimizer
from lora_trainer.recipe.stopping import StepInterruptedError

pytestmark = pytest.mark.gpu_stack


def test_lora_plus_applies_the_requested_weight_decay():
    from lora_trainer.models.loading import attach_lora
    from tests.unit.trainer.models.test_targets import meta_model

    parameters = Hyperparameters(loraplus_lr_ratio=4, weight_decay=0.05, learning_rate=1e-4)
    trainer = SimpleNamespace(
        model=attach_lora(meta_model("llama"), parameters).model,
        args=None,
        get_optimizer_cls_and_kwargs=lambda _: (torch.optim.AdamW, {"lr": 1e-4}),
    )
    groups = [group for group in loraplus_optimizer(trainer, parameters).param_groups if group["params"]]
    assert {group["weight_decay"] for group in groups} == {0.05}
    assert {group["lr"] for group in groups} == {1e-4, 4e-4}


def test_stop_in_an_evaluation_asks_no_other_process_for_a_step():
    """They wait for the evaluation's losses."""

    def end():
        raise StepInterruptedError

    trainer = SimpleNamespace(end_if_asked=end, ranks=SimpleNamespace(gather=pytest.fail), amount=lambda _: 1)
    with pytest.raises(StepInterruptedError):
        StepTrainer.get_batch_samples(trainer, iter([[{}]]), 1, torch.device("cpu"))
