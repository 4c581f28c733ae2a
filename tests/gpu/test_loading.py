"""Each architecture at its real widths: loaded in 4 bits within the plan, and trained a step."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu.weights import SCALED, load_random, scaled_config
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.bases import Base
from lora_trainer.models.experts import unquantised_experts
from lora_trainer.models.loading import attach_lora, load_config, load_model, tensor_bytes
from lora_trainer.models.plan import plan_memory
from lora_trainer.models.quantised_cache import QuantisedCache
from sandbox.tiny_architectures import tiny_config

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("architecture", SCALED)
def test_each_architecture_loads_as_planned_and_gives_finite_gradients(architecture, hardware):
    config = scaled_config(architecture)
    parameters = Hyperparameters()
    plan = plan_memory(config, parameters, row_tokens=512, micro_batch=1, dtype=hardware.dtype)
    before = torch.cuda.memory_allocated()
    model = load_random(config, hardware)
    peak = torch.cuda.max_memory_allocated() - before
    loaded = sum(tensor_bytes(model).values())
    print(f"{architecture}: planned {plan.weight_bytes}, loaded {loaded}; planned peak {plan.loading_peak}, was {peak}")
    assert unquantised_experts(model) == []
    assert abs(loaded - plan.weight_bytes) < 0.01 * plan.weight_bytes
    assert peak < 1.05 * plan.loading_peak

    lora = attach_lora(model, parameters)
    assert lora.trainable == plan.trainable
    tokens = torch.randint(10, 1000, (1, 512), device="cuda")
    lora.model.enable_input_require_grads()
    with torch.autocast("cuda", hardware.dtype):
        loss = lora.model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    assert torch.isfinite(loss)
    trained = [p for p in lora.model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "qwen3_next"])
def test_quantised_copy_loads_bit_by_bit_like_the_base(tmp_path, hardware, architecture):
    AutoModelForCausalLM.from_config(tiny_config(architecture, vocab_size=512)).save_pretrained(tmp_path / "base")
    base = Base("tiny", None, tmp_path / "base")
    with QuantisedCache(tmp_path, 10**9) as cache:
        first = load_model(base, load_config(base), hardware, cache=cache)
        cache.wait()
        assert list((tmp_path / "quantised-models").glob("*/manifest.json"))
        second = load_model(base, load_config(base), hardware, cache=cache)
    weights, copied = first.state_dict(), second.state_dict()
    assert weights.keys() == copied.keys()
    assert [name for name in weights if not torch.equal(weights[name], copied[name])] == []
    assert {tensor.device.type for tensor in copied.values() if tensor.numel() > 300} == {"cuda"}


def test_unquantised_base_uses_the_memory_of_its_weights(hardware):
    model = load_random(scaled_config("llama"), hardware, quantize=False)
    weights = sum(p.numel() for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {hardware.dtype}
    assert torch.cuda.max_memory_allocated() < 2 * weights * 1.15
