"""Routed experts at their real widths: one kernel for all, with LoRA on them or not."""

import pytest
import torch

from benchmarks.gpu.weights import load_random, real_config
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.experts import experts_kernel
from lora_trainer.models.loading import attach_lora
from lora_trainer.models.plan import Planner

pytestmark = pytest.mark.gpu

QWEN_30B = "Qwen/Qwen3-30B-A3B-Instruct-2507"


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize("parameters", [{}, {"target_experts": True, "rank": 4}, {"target_experts": True, "rank": 16}])
def test_experts_go_through_the_grouped_kernel_and_learn_finitely(hardware, quantize, parameters):
    config = real_config(QWEN_30B, num_hidden_layers=2)
    chosen = Hyperparameters(**parameters)
    lora = attach_lora(load_random(config, hardware, quantize=quantize), chosen)
    assert experts_kernel(lora.model) == "grouped_mm"
    for name, weight in lora.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    lora.model.train()
    lora.model.enable_input_require_grads()
    lora.model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = torch.randint(10, 1000, (1, 2048), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with torch.profiler.profile() as seen, torch.autocast("cuda", hardware.dtype):
        loss = lora.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
    calls = {event.key: event.count for event in seen.key_averages()}
    assert sum(count for name, count in calls.items() if name.endswith("_grouped_mm")) >= 2 * 2 * 2
    assert not any("grouped_mm_fallback" in name for name in calls)
    trained = {name: p.grad for name, p in lora.model.named_parameters() if p.requires_grad}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in trained.values())
    assert all(grad.any() for name, grad in trained.items() if ".experts." in name)
    planner = Planner(config, chosen, row_tokens=2048, dtype=hardware.dtype, quantize=quantize, optimizer_bytes=0)
    plan = planner.plan(1)
    print(f"planned {plan.allocated / 1e9:.2f} GB, was {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    assert torch.cuda.max_memory_allocated() < 1.1 * plan.allocated


def test_lora_on_experts_computes_in_bf16_what_it_does_in_fp32(hardware):
    config = real_config(QWEN_30B, num_hidden_layers=1, num_experts=16, vocab_size=2048)
    tokens = torch.randint(10, 1000, (1, 512), device="cuda")
    losses = []
    for dtype in (hardware.dtype, torch.float32):
        lora = attach_lora(
            load_random(config, hardware.__class__(hardware.device, dtype), quantize=False),
            Hyperparameters(target_experts=True, rank=4),
        )
        chance = torch.Generator("cuda").manual_seed(0)
        for name, weight in sorted(lora.model.named_parameters()):
            if "lora_" in name:
                weight.data.normal_(0, 0.02, generator=chance)
        with torch.no_grad():
            losses.append(lora.model(input_ids=tokens, labels=tokens, use_cache=False).loss.float().item())
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)
