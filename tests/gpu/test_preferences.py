"""Preference methods on a GPU: packed and padded rows have the same losses, and what is preferred gains."""

import pytest
import torch

from benchmarks.gpu.rows import small_tokenizer
from benchmarks.gpu.weights import load_random, real_config
from lora_contract.batches import BatchShape
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.data.items import Pair, RatedAnswer
from lora_trainer.models.attention import choose_attention
from lora_trainer.models.loading import attach_lora
from lora_trainer.recipe.methods import METHODS
from lora_trainer.recipe.steps import TrainingBatches, build_trainer, training_arguments
from tests.integration.trainer.test_preference_losses import row, with_prompt

pytestmark = pytest.mark.gpu


def items_of(method):
    """Items of equal lengths: steps are shared out by length, which padding changes."""
    prompts = [row(100 + n, 8, 1).input_ids for n in range(16)]
    answers = [row(200 + n, 0, 8) for n in range(17)]
    both = [(with_prompt(prompts[n], answers[n]), with_prompt(prompts[n], answers[n + 1])) for n in range(16)]
    return [Pair(*rows) if method == "dpo" else RatedAnswer(*rows, good=n % 2 == 0) for n, rows in enumerate(both)]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preference_losses_are_the_same_packed_and_padded(method, hardware, tmp_path):
    losses, margins = {}, {}
    for is_packed in (True, False):
        torch.manual_seed(0)
        config = real_config("meta-llama/Meta-Llama-3-8B-Instruct", num_hidden_layers=2)
        base = load_random(config, hardware, attention=choose_attention(config, hardware))
        parameters = Hyperparameters(method=method, dropout=0, epochs=2, learning_rate=1e-3)
        shape = BatchShape(4, 1 if is_packed else 4, 136 if is_packed else 34, packed=is_packed)
        arguments = training_arguments(parameters, shape, hardware, tmp_path / str(is_packed))
        lora = attach_lora(base, parameters)
        batches = TrainingBatches(items_of(method), [], shape, 1 if is_packed else 2)
        trainer = build_trainer(METHODS[method].trainer, lora, small_tokenizer(), batches, arguments, parameters)
        trainer.begin(None)
        trainer.train()
        losses[is_packed] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        margins[is_packed] = [entry.get("reward_margin") for entry in trainer.state.log_history if "loss" in entry]
        del base, lora, trainer
    print(losses, margins)
    assert len(losses[True]) == 8
    assert losses[True] == pytest.approx(losses[False], abs=2e-2)
    assert margins[True][-1] > 0.1
