"""Packed examples don't see each other, whatever computes the attention."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from benchmarks.gpu.rows import random_rows, small_tokenizer
from benchmarks.gpu.weights import load_random, real_config
from lora_contract.batches import BatchShape
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.attention import FLASH, SDPA, choose_attention
from lora_trainer.models.loading import attach_lora
from lora_trainer.recipe.methods.sft import AnswerTrainer
from lora_trainer.recipe.steps import TrainingBatches, build_trainer, training_arguments

pytestmark = pytest.mark.gpu

LENGTHS = (700, 300, 24, 1, 500, 523)
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
}


def packed(examples):
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate([{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in examples])
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in batch.items()}


def relative(found, wanted):
    return ((found.float() - wanted).norm() / wanted.norm()).item()


def logits_and_gradient(model, batches):
    """The logits of all tokens in a row, and the gradient of the first layer's queries."""
    rows = [model(**batch, use_cache=False).logits[0] for batch in batches]
    logits = torch.cat(rows).float()
    weight = model.model.layers[0].self_attn.q_proj.weight
    generator = torch.Generator("cuda").manual_seed(1)
    direction = torch.randn(logits.shape, device="cuda", generator=generator)
    (gradient,) = torch.autograd.grad((logits * direction).sum(), weight)
    return logits.detach(), gradient


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("attention", ["chosen", SDPA, FLASH])
def test_attention_over_packed_rows_agrees_with_a_float32_reference(attention, window, hardware):
    config = real_config(MISTRAL if window else LLAMA, **SMALL, **({"sliding_window": window} if window else {}))
    if attention == "chosen":
        attention = choose_attention(config, hardware)
    if attention == FLASH and not is_flash_attn_2_available():
        pytest.skip("flash-attn is not installed here")
    torch.manual_seed(3)
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").cuda()
    examples = [torch.randint(10, 1000, (length,)) for length in LENGTHS]
    alone = [{"input_ids": ids[None].cuda()} for ids in examples]
    wanted, slope = logits_and_gradient(reference, alone)

    model = reference.to(hardware.dtype)
    model.set_attn_implementation(attention)
    batch = packed(examples)
    batch.pop("labels")
    found, gradient = logits_and_gradient(model, [batch])
    print(f"{attention}: logits off by {relative(found, wanted):.1e}, gradient {relative(gradient, slope):.1e}")
    assert relative(found, wanted) < 1e-2
    assert relative(gradient, slope) < 3e-2


@pytest.mark.parametrize("model", [LLAMA, "Qwen/Qwen3-30B-A3B-Instruct-2507"])
def test_packed_and_unpacked_training_have_the_same_losses(model, hardware, tmp_path):
    losses = {}
    for is_packed in (True, False):
        torch.manual_seed(0)
        config = real_config(model, num_hidden_layers=2)
        base = load_random(config, hardware, attention=choose_attention(config, hardware))
        parameters = Hyperparameters(dropout=0, epochs=1, max_length=1024, learning_rate=1e-3)
        rows = random_rows(16, 256, 1000)
        shape = BatchShape(4, 1 if is_packed else 4, 1024 if is_packed else 256, packed=is_packed)
        arguments = training_arguments(parameters, shape, hardware, tmp_path / str(is_packed))
        lora = attach_lora(base, parameters)
        batches = TrainingBatches(rows, [], shape, 1 if is_packed else 2)
        trainer = build_trainer(AnswerTrainer, lora, small_tokenizer(), batches, arguments, parameters)
        trainer.train()
        losses[is_packed] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        del base, lora, trainer
    print(losses)
    assert len(losses[True]) == 4
    assert losses[True] == pytest.approx(losses[False], abs=1e-2)
