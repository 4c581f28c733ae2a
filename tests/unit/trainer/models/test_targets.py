import sys

import pytest
import torch

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import BaseModelUnknownError, HyperparametersInvalidError
from lora_trainer.models.loading import attach_lora
from lora_trainer.models.targets import Targets, check_coverage, choose_targets, packing_decision
from sandbox.tiny_architectures import ARCHITECTURES, tiny_config

pytestmark = pytest.mark.gpu_stack


def meta_model(architecture: str, **changes):
    from transformers import AutoModelForCausalLM

    config = tiny_config(architecture, vocab_size=512)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def lora_names(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_reaches_each_named_module_but_no_router_or_head(architecture):
    lora = attach_lora(meta_model(architecture), Hyperparameters())
    assert set(lora.coverage) == set(lora.targets.modules)
    for name in lora_names(lora.model):
        assert "lora_" in name
        assert not any(part in name for part in ("experts", "mlp.gate.", "shared_expert_gate", "lm_head", "embed"))
    assert "weights train" in lora.sentence()


def test_every_linear_attention_layer_gets_lora():
    lora = attach_lora(meta_model("qwen3_next"), Hyperparameters())
    assert lora.coverage["in_proj_qkvz"] == 3
    assert lora.coverage["q_proj"] == 1


def test_shared_expert_can_be_trained_without_the_routed_ones():
    lora = attach_lora(meta_model("qwen3_next"), Hyperparameters(target_experts=True))
    assert lora.coverage["shared_expert.up_proj"] == 4
    assert not any(".experts." in name for name in lora_names(lora.model))


@pytest.mark.parametrize(("architecture", "words"), [("mixtral", "routed experts"), ("llama", "no experts")])
def test_experts_that_cannot_be_trained_are_refused(architecture, words):
    with pytest.raises(HyperparametersInvalidError, match=words):
        choose_targets(meta_model(architecture), target_experts=True)


def test_unknown_architecture_gets_lora_on_linear_layers_only():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "olmo2", hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=64
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    targets = choose_targets(model, target_experts=False)
    assert set(targets.modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert "olmo2" in targets.note
    assert set(check_coverage(attach_lora(model, Hyperparameters()).model, targets)) == set(targets.modules)


def test_target_module_without_lora_is_an_error():
    model = attach_lora(meta_model("llama"), Hyperparameters()).model
    with pytest.raises(BaseModelUnknownError, match="in_proj_qkvz"):
        check_coverage(model, Targets(("q_proj", "in_proj_qkvz")))


def test_packing_is_used_only_where_examples_stay_apart():
    assert packing_decision("llama", None) == (True, None)
    assert packing_decision("llama", False) == (False, None)
    on, note = packing_decision("qwen3_next", True)
    assert on is False
    assert "causal_conv1d" in note
    assert packing_decision("qwen3_next", None) == (False, None)
    assert packing_decision("olmo2", None)[0] is False


def test_kernel_that_fails_to_import_does_not_enable_packing(monkeypatch, tmp_path):
    for name in ("causal_conv1d", "fla"):
        (tmp_path / f"{name}.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert packing_decision("qwen3_next", None) == (True, None)
    for name in ("causal_conv1d", "fla"):
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "causal_conv1d.py").write_text("raise OSError('undefined symbol: _ZN3c104cuda')")
    on, note = packing_decision("qwen3_next", None)
    assert on is False
    assert "causal_conv1d" in note
