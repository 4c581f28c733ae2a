"""The fused layers compute what PEFT's and transformers' do: the same loss, the same gradients."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu.speed import TINY
from benchmarks.gpu.weights import load_random, real_config
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.fused import fuse
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import attach_lora

pytestmark = pytest.mark.gpu_stack

CPU = Hardware("cpu", torch.float32)
SEVEN, LAYERS = 7, TINY["num_hidden_layers"]


def lora_on(name, *, quantize, **parameters):
    torch.manual_seed(0)
    model = load_random(real_config(name, **TINY), CPU, quantize=quantize)
    lora = attach_lora(model, Hyperparameters(rank=8, **parameters))
    for key, weight in lora.model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.1)
    lora.model.enable_input_require_grads()
    return lora.model.train()


def loss_and_gradients(model):
    ids = torch.randint(2, TINY["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(1))
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return loss.item(), found


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", SEVEN * LAYERS),
        ("Qwen/Qwen2.5-7B-Instruct", SEVEN * LAYERS),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 4 * LAYERS),
    ],
)
@pytest.mark.parametrize(("recompute", "lean"), [(False, False), (True, False), (False, True)])
def test_fused_layers_learn_what_pefts_learn(name, fused, quantize, recompute, lean):
    model = lora_on(name, quantize=quantize, dropout=0)
    loss, wanted = loss_and_gradients(model)
    assert fuse(model, lean=lean) == fused
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    again, found = loss_and_gradients(model)
    assert again == pytest.approx(loss, rel=1e-5)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-5, rtol=1e-3, msg=lambda why, key=key: f"{key} {why}")


@pytest.mark.parametrize("parameters", [{"dropout": 0.1}, {"dropout": 0, "use_dora": True}])
def test_layers_with_dropout_or_dora_stay_as_peft_made_them(parameters):
    model = lora_on("meta-llama/Meta-Llama-3-8B-Instruct", quantize=True, **parameters)
    assert fuse(model) == 0


def test_a_switched_off_adapter_gives_the_base_and_saving_is_unchanged(tmp_path):
    model = lora_on("meta-llama/Meta-Llama-3-8B-Instruct", quantize=True, dropout=0)
    ids = torch.randint(2, TINY["vocab_size"], (1, 16))
    with model.disable_adapter(), torch.no_grad():
        base = model(input_ids=ids).logits
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora" in name}
    fuse(model, lean=True)
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, base, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert {path.name for path in Path(tmp_path).iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
