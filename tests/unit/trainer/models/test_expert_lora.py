"""LoRA on routed experts is PEFT's, on 4-bit weights too, and leaves as adapters that PEFT loads."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.artifact.folder import round_adapter
from lora_trainer.errors import HyperparametersInvalidError, InitAdapterUnusableError
from lora_trainer.models.adapters import load_earlier_adapter
from lora_trainer.models.bases import Base
from lora_trainer.models.expert_lora import publish_by_expert
from lora_trainer.models.experts import experts_kernel
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import attach_lora, load_config, load_model
from lora_trainer.models.plan import Planner
from sandbox.tiny_architectures import tiny_config

pytestmark = pytest.mark.gpu_stack

CPU = Hardware("cpu", torch.float32)
EXPERTS, LAYERS, RANK = 16, 2, 4
PARAMETERS = Hyperparameters(rank=RANK, target_experts=True)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def small_config(architecture="qwen3_moe"):
    config = tiny_config(architecture, vocab_size=512)
    config.num_hidden_layers = LAYERS
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(small_config()).save_pretrained(folder)
    return folder


def ours(folder, *, quantize, parameters=PARAMETERS):
    base = Base("tiny", None, folder)
    return attach_lora(load_model(base, load_config(base), CPU, quantize=quantize), parameters)


def unquantised(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def give_values(model):
    """The same values to the same weights of LoRA, whoever made them."""
    chance = torch.Generator().manual_seed(3)
    for name, weight in sorted(model.named_parameters()):
        if "lora_" in name:
            weight.data.normal_(0, 0.1, generator=chance)


def some_ids():
    return torch.randint(3, 500, (2, 20), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model):
    model.train()
    model.enable_input_require_grads()
    loss = model(input_ids=some_ids(), labels=some_ids(), use_cache=False).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return loss.item(), found


def logits(model):
    with torch.no_grad():
        return model(input_ids=some_ids(), use_cache=False).logits


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-6, rtol=1e-4), name


def test_loss_and_gradients_are_those_of_pefts_own_in_full_precision(folder):
    fused = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules=ATTENTION, target_parameters=fused
    )
    peft, own = get_peft_model(unquantised(folder), config), ours(folder, quantize=False).model
    for model in (peft, own):
        give_values(model)
    (loss, gradients), (own_loss, own_gradients) = loss_and_gradients(peft), loss_and_gradients(own)
    assert own_loss == pytest.approx(loss, rel=1e-6)
    assert_close(own_gradients, gradients)
    assert len(own_gradients) == LAYERS * (2 * len(ATTENTION) + 4)


def test_four_bit_experts_train_like_the_same_weights_unpacked(folder):
    quantised = ours(folder, quantize=True).model
    reference = ours(folder, quantize=False).model
    for layer, (packed, plain) in enumerate(
        zip(quantised.base_model.model.model.layers, reference.base_model.model.model.layers, strict=True)
    ):
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(packed.mlp.experts.get_base_layer(), name).detach()
            assert weight.ndim == 3, layer
            getattr(plain.mlp.experts.get_base_layer(), name).data.copy_(weight)
        for name in ATTENTION:
            linear = getattr(packed.self_attn, name).base_layer
            unpacked = torch.empty_like(getattr(plain.self_attn, name).base_layer.weight)
            eye = torch.eye(linear.in_features)
            unpacked.copy_(linear(eye).detach().t())
            getattr(plain.self_attn, name).base_layer.weight.data.copy_(unpacked)
    for model in (quantised, reference):
        give_values(model)
    for _ in range(2):  # PEFT's own form fails in the second step
        (loss, gradients), (own_loss, own_gradients) = loss_and_gradients(reference), loss_and_gradients(quantised)
        assert own_loss == pytest.approx(loss, rel=1e-5)
        assert_close(own_gradients, gradients)


def test_products_of_experts_go_through_the_grouped_kernel(folder):
    model = ours(folder, quantize=True).model
    assert experts_kernel(model) == "grouped_mm"
    with torch.profiler.profile() as seen:
        loss_and_gradients(model)
    calls = {event.key: event.count for event in seen.key_averages()}
    # Forward: both products, and those with A and B of each.
    assert calls["aten::_grouped_mm"] >= LAYERS * 2 * 3
    assert not any("grouped_mm_fallback" in name for name in calls)
    assert experts_kernel(torch.nn.Linear(2, 2)) is None


def test_recomputed_layers_give_the_same_gradients(folder):
    model = ours(folder, quantize=True).model
    give_values(model)
    loss, kept = loss_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, recomputed = loss_and_gradients(model)
    assert again == loss
    assert_close(recomputed, kept)


# PEFT fuses gate and up with twice the rank, and warns that no module has that name: it is a parameter's.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
def test_published_adapter_has_a_lora_for_each_expert_and_peft_loads_it(folder, tmp_path):
    lora = ours(folder, quantize=False)
    give_values(lora.model)
    round_adapter(lora.model)
    lora.model.save_pretrained(tmp_path, save_embedding_layers=False)
    publish_by_expert(tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json", EXPERTS)
    loaded = PeftModel.from_pretrained(unquantised(folder), tmp_path)
    assert torch.allclose(logits(loaded), logits(lora.model.eval()), atol=1e-5)
    assert not torch.allclose(logits(loaded), logits(unquantised(folder)), atol=1e-2)

    from safetensors import safe_open

    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
        size = sum(file.get_tensor(name).numel() for name in names)
    prefix = "base_model.model.model.layers.1.mlp.experts"
    for expert in range(EXPERTS):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            assert {f"{prefix}.{expert}.{projection}.lora_{matrix}.weight" for matrix in "AB"} <= names
    assert len(names) == LAYERS * 2 * (len(ATTENTION) + 3 * EXPERTS)
    assert lora.adapter_bytes == 2 * size
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == {*ATTENTION, "gate_proj", "up_proj", "down_proj"}


def publish(model, folder):
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "org/base"}))
    publish_by_expert(folder / "adapter_model.safetensors", path, EXPERTS)


def test_training_can_begin_with_a_published_adapter_of_experts(folder, tmp_path):
    first, second = ours(folder, quantize=True).model, ours(folder, quantize=True).model
    give_values(first)
    publish(first, tmp_path)
    load_earlier_adapter(tmp_path, second, base_name="org/base", base_revision=None)
    weights = {name: p for name, p in second.named_parameters() if p.requires_grad}
    assert [n for n, p in first.named_parameters() if p.requires_grad and not torch.equal(p, weights[n])] == []


def lose_an_expert(tensors):
    del tensors["base_model.model.model.layers.1.mlp.experts.7.up_proj.lora_B.weight"]


def part_gate_from_up(tensors):
    tensors["base_model.model.model.layers.0.mlp.experts.3.gate_proj.lora_A.weight"] += 1


def flatten_an_expert(tensors):
    name = "base_model.model.model.layers.0.mlp.experts.3.down_proj.lora_A.weight"
    tensors[name] = tensors[name].flatten()


@pytest.mark.parametrize("change", [lose_an_expert, part_gate_from_up, flatten_an_expert])
def test_published_adapter_that_does_not_fit_is_refused(folder, tmp_path, change):
    model = ours(folder, quantize=False).model
    publish(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InitAdapterUnusableError, match="other names or shapes"):
        load_earlier_adapter(tmp_path, model, base_name="org/base", base_revision=None)


def test_base_with_the_adapter_off_is_the_base(folder):
    model = ours(folder, quantize=False).model.eval()
    give_values(model)
    with model.disable_adapter():
        assert torch.allclose(logits(model), logits(unquantised(folder)), atol=1e-5)


def test_checkpoint_of_trained_experts_is_read_back_whole(folder, tmp_path):
    first, second = ours(folder, quantize=True).model, ours(folder, quantize=True).model
    give_values(first)
    first.save_pretrained(tmp_path, save_embedding_layers=False)
    second.load_adapter(tmp_path, "default", is_trainable=True)
    trained = {name: p for name, p in second.named_parameters() if p.requires_grad}
    assert len(trained) == LAYERS * (2 * len(ATTENTION) + 4)
    assert [n for n, p in first.named_parameters() if p.requires_grad and not torch.equal(p, trained[n])] == []


def test_plan_counts_the_weights_that_train_and_are_published(folder):
    lora = ours(folder, quantize=True)
    plan = Planner(small_config(), PARAMETERS, row_tokens=64).plan(1)
    without = Planner(small_config(), Hyperparameters(rank=RANK), row_tokens=64).plan(1)
    assert (plan.trainable, plan.published) == (lora.trainable, lora.published)
    assert plan.trainable < plan.published
    assert plan.training["one layer's backward pass"] > without.training["one layer's backward pass"]
    assert "experts.gate_up_proj ×2, experts.down_proj ×2" in lora.sentence()


@pytest.mark.parametrize("change", [{"dropout": 0.1}, {"use_dora": True}, {"use_rslora": True}])
def test_settings_that_experts_cannot_have_are_refused_by_name(change):
    parameters = Hyperparameters(target_experts=True, **change)
    with pytest.raises(HyperparametersInvalidError, match=next(iter(change))):
        Planner(small_config(), parameters, row_tokens=64)
