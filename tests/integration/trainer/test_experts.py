"""A mixture of experts, trained with LoRA on its experts by the real process."""

import pytest
import torch
from safetensors import safe_open

from sandbox.tiny_architectures import tiny_config
from tests.integration.trainer.child import make_task, train

pytestmark = pytest.mark.gpu_stack


@pytest.fixture
def base(tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = tiny_config("qwen3_moe", vocab_size=len(tokenizer), **ends)
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_killed_training_of_experts_resumes_and_publishes_each_one(tmp_path, base):
    wanted = {"hyperparameters": {"target_experts": True, "rank": 4, "epochs": 1}, "volume": tmp_path}
    killed, _ = train(
        make_task(tmp_path / "job", base, checkpoint_minutes=1e-9, **wanted), LORA_CRASH="trainer.train.step#2=kill"
    )
    assert killed is None
    task = make_task(tmp_path / "job", base, **wanted)
    outcome, _ = train(task)
    assert outcome.status == "trained", outcome.error
    assert outcome.summary.resumed_from_step >= 1
    assert any("every routed expert" in note for note in outcome.summary.notes)
    assert "| routed experts | `grouped_mm` |" in (task.artifact / "README.md").read_text()
    with safe_open(task.artifact / "adapter_model.safetensors", framework="pt") as file:
        prefix = "base_model.model.model.layers.0.mlp.experts.15"
        trained = [file.get_tensor(f"{prefix}.{name}_proj.lora_B.weight").any() for name in ("gate", "up", "down")]
    assert all(trained)
