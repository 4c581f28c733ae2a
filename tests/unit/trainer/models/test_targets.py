import sys

import pytest
import torch

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import BaseModelUnknownError, HyperparametersInvalidError
from lora_trainer.models.loading import attach_lora
from lora_trainer.models.targets import Targets, check_coverage, choose_targets, packing_decision, vllm_rank
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
def test_every_named_module_takes_lora_and_no_router_head_or_embedding_does(architecture):
    lora = attach_lora(meta_model(architecture), Hyperparameters())
    assert set(lora.coverage) == set(lora.targets.modules)
    for name in lora_names(lora.model):
        assert "lora_" in name
        assert not any(part in name for part in ("experts", "mlp.gate.", "shared_expert_gate", "lm_head", "embed"))
    assert "weights train" in lora.sentence()


def test_linear_attention_carries_lora_in_every_layer_that_has_it():
    lora = attach_lora(meta_model("qwen3_next"), Hyperparameters())
    assert lora.coverage["in_proj_qkvz"] == 3
    assert lora.coverage["q_proj"] == 1


def test_a_shared_expert_is_trained_when_asked_for_and_the_routed_ones_are_not():
    lora = attach_lora(meta_model("qwen3_next"), Hyperparameters(target_experts=True))
    assert lora.coverage["shared_expert.up_proj"] == 4
    assert not any(".experts." in name for name in lora_names(lora.model))


@pytest.mark.parametrize(("architecture", "words"), [("qwen3_moe", "routed experts"), ("llama", "no experts")])
def test_experts_that_can_not_be_trained_are_refused(architecture, words):
    with pytest.raises(HyperparametersInvalidError, match=words):
        choose_targets(meta_model(architecture), target_experts=True)


def test_an_unknown_architecture_gets_all_linear_layers_but_heads_and_routers():
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


def test_a_target_that_took_no_lora_is_an_error_not_a_silence():
    model = attach_lora(meta_model("llama"), Hyperparameters()).model
    with pytest.raises(BaseModelUnknownError, match="in_proj_qkvz"):
        check_coverage(model, Targets(("q_proj", "in_proj_qkvz")))


def test_packing_is_on_where_examples_stay_apart_and_a_refusal_is_explained():
    assert packing_decision("llama", None) == (True, None)
    assert packing_decision("llama", False) == (False, None)
    on, note = packing_decision("qwen3_next", True)
    assert on is False
    assert "causal_conv1d" in note
    assert packing_decision("qwen3_next", None) == (False, None)
    assert packing_decision("olmo2", None)[0] is False


def test_a_kernel_that_is_there_but_does_not_import_does_not_turn_packing_on(monkeypatch, tmp_path):
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


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (4, 8), (16, 16), (24, 32), (96, 128), (257, 320), (400, 512)])
def test_vllm_is_told_a_rank_that_it_takes(rank, served):
    assert vllm_rank(rank) == served
