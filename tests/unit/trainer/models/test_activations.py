"""The planned activations of a layer equal what autograd really keeps for the same model on the CPU."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu.speed import TINY
from benchmarks.gpu.weights import load_random, real_config
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models import attention, fused
from lora_trainer.models.activations import count_activations
from lora_trainer.models.attention import VARLEN
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import attach_lora
from lora_trainer.models.plan import Planner

pytestmark = pytest.mark.gpu_stack

TOKENS = 512
LAYERS = TINY["num_hidden_layers"]
WIDE = {**TINY, "hidden_size": 256, "intermediate_size": 1024, "head_dim": 64}


class Kernel(torch.autograd.Function):
    """Attention that keeps for its backward pass the same tensors as the GPU's kernel."""

    @staticmethod
    def forward(ctx, query, key, value):
        mixed = query.clone()
        ctx.save_for_backward(query, key, value, mixed)
        return mixed

    @staticmethod
    def backward(ctx, gradient):
        _, key, value, _ = ctx.saved_tensors
        return gradient, torch.zeros_like(key), torch.zeros_like(value)


class Norm(torch.autograd.Function):
    """As torch's kernel for the GPU: keeps its input; on the CPU torch keeps a copy in fp32, too."""

    @staticmethod
    def forward(ctx, states, weight):
        ctx.save_for_backward(states)
        return torch.nn.functional.rms_norm(states, weight.shape, weight)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def kept_bytes(model):
    """Bytes that a forward pass leaves for the backward pass, each tensor once, weights left out."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned and tensor.numel() >= TOKENS:
            # A mask of dropout is kept in fp32 on the CPU and in bytes on the GPU.
            is_mask = tensor.dtype is torch.float32 and tensor.grad_fn is None
            seen[storage.data_ptr()] = (storage.nbytes() // 4 if is_mask else storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(2, TINY["vocab_size"], (1, TOKENS))
    starts = torch.tensor([0, TOKENS], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        states = model.base_model.model.model(
            input_ids=ids, cu_seq_lens_q=starts, max_length_q=TOKENS, use_cache=False
        ).last_hidden_state
    states.sum().backward()
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("name", ["meta-llama/Meta-Llama-3-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-8B"])
@pytest.mark.parametrize(("dropout", "lean"), [(0, False), (0, True), (0.1, False)])
def test_what_autograd_keeps_is_what_the_plan_counts(name, dropout, lean, monkeypatch):
    monkeypatch.setattr(attention, "_kernel", lambda query, key, value, *_: Kernel.apply(query, key, value))
    monkeypatch.setattr(fused, "_norm_forward", lambda norm, states: Norm.apply(states, norm.weight))
    config = real_config(name, **WIDE)
    hardware = Hardware("cpu", torch.bfloat16)
    parameters = Hyperparameters(rank=8, dropout=dropout)
    lora = attach_lora(load_random(config, hardware, attention=VARLEN), parameters)
    fused.fuse(lora.model, lean=lean)
    lora.model.enable_input_require_grads()
    kept = kept_bytes(lora.model.train())

    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    carriers = {key for key, _ in bare.named_modules() if key.endswith("_proj")}
    counted = count_activations(bare, parameters, carriers, masked=False)
    assert bool(counted.spared_if_lean) is (dropout == 0)
    planned = counted.all_layers - (counted.spared_if_lean if lean else 0)
    assert planned * TOKENS == pytest.approx(kept, rel=0.05)
    assert counted.widest_layer * LAYERS == counted.all_layers


def test_plan_compares_keeping_activations_with_recomputing_them():
    config = real_config("meta-llama/Meta-Llama-3-8B-Instruct")
    planner = Planner(config, Hyperparameters(), row_tokens=4096)
    kept, again = planner.plan(2, recompute=False), planner.plan(2, recompute=True)
    assert kept.total > 3 * again.total
    assert kept.training["activations kept"] > 32 * 8192 * 150_000
    assert again.allocated < again.total


@pytest.mark.parametrize(
    ("gpu_gb", "asked", "rows", "recompute", "lean"),
    [
        (85, None, 3, False, False),
        (48, None, 1, False, False),
        (24, None, 1, False, True),
        (20, None, 6, True, False),
        (85, True, 8, True, False),
        (12, None, 2, True, False),
    ],
)
def test_activations_are_kept_where_they_fit_and_rows_fill_the_rest(gpu_gb, asked, rows, recompute, lean):
    planner = Planner(real_config("meta-llama/Meta-Llama-3-8B-Instruct"), Hyperparameters(), row_tokens=4096)
    plan = planner.fit(8, gpu_gb * 10**9, recompute=asked)
    assert (plan.micro_batch, plan.recompute, plan.lean) == (rows, recompute, lean)
    assert plan.needed <= gpu_gb * 10**9


def test_four_bit_experts_are_always_recomputed():
    config = real_config("Qwen/Qwen3-30B-A3B-Instruct-2507")
    plan = Planner(config, Hyperparameters(), row_tokens=4096).fit(16, 10**15)
    assert plan.recompute
    assert plan.micro_batch == 16
    assert not Planner(config, Hyperparameters(), row_tokens=4096, quantize=False).fit(1, 10**15).recompute
