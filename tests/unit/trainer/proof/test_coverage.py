"""Every kind of adapter that is published is found whole in the modules, and each change of its file is found."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.artifact.folder import round_adapter
from lora_trainer.errors import NotAppliedError
from lora_trainer.models.bases import Base
from lora_trainer.models.expert_lora import publish_by_expert
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import attach_lora, load_config, load_model
from lora_trainer.proof.asking import fingerprint, greedy_answers
from lora_trainer.proof.coverage import check_coverage
from lora_trainer.proof.loading import load_adapter
from lora_trainer.run.proof_task import ProofTask
from sandbox.tiny_architectures import tiny_config

CPU = Hardware("cpu", torch.float32)
EXPERTS, RANK = 16, 4
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def give_values(model):
    chance = torch.Generator().manual_seed(3)
    for name, weight in sorted(model.named_parameters()):
        if "lora_" in name:
            weight.data.normal_(0, 0.1, generator=chance)


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_each_module_and_tensor_of_an_adapter_is_counted(tmp_path, options):
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    adapted = get_peft_model(llama(), config)
    give_values(adapted)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    published = load_file(tmp_path / "adapter_model.safetensors")
    base = llama()
    weights = fingerprint(base)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    covered = check_coverage(published, loaded)
    assert (covered.modules, covered.tensors) == (2, 6 if options.get("use_dora") else 4)
    assert fingerprint(loaded) == weights
    with pytest.raises(NotAppliedError, match="arrived with other values"):
        check_coverage({name: tensor + 1 for name, tensor in published.items()}, loaded)


def test_file_without_a_tensor_is_not_applied():
    with pytest.raises(NotAppliedError, match="holds no tensor"):
        check_coverage({}, llama())


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture of experts of one layer."""
    folder = tmp_path_factory.mktemp("base")
    config = tiny_config("qwen3_moe", vocab_size=64)
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return Base("tiny", None, folder)


# PEFT fuses gate and up with twice the rank, and warns that no module has that name: it is a parameter's.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("held", ["bf16", "nf4"])
def test_each_expert_of_the_published_layout_is_counted(mixture, tmp_path, held):
    parameters = Hyperparameters(rank=RANK, target_experts=True)
    config = load_config(mixture)
    lora = attach_lora(load_model(mixture, config, CPU, quantize=held == "nf4"), parameters)
    give_values(lora.model)
    round_adapter(lora.model)
    artifact = tmp_path / "artifact"
    lora.model.save_pretrained(artifact, save_embedding_layers=False)
    publish_by_expert(artifact / "adapter_model.safetensors", artifact / "adapter_config.json", EXPERTS)
    published = load_file(artifact / "adapter_model.safetensors")

    task = ProofTask(
        execution_id="x", job_folder=tmp_path, folder=tmp_path, volume=tmp_path, hyperparameters=parameters
    )
    model = load_model(mixture, load_config(mixture), CPU, quantize=held == "nf4").eval()
    weights = fingerprint(model)
    loaded = load_adapter(model, task, held)
    covered = check_coverage(published, loaded)
    assert covered.modules == len(ATTENTION) + 3 * EXPERTS
    assert covered.tensors == len(published) == 2 * covered.modules
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, lora.model.eval()(ids).logits, atol=1e-4)
    assert fingerprint(loaded) == weights

    name = "base_model.model.model.layers.0.mlp.experts.7.up_proj.lora_B.weight"
    with pytest.raises(NotAppliedError, match=r"1 of its file's .* other values \(first model.layers.0.mlp.experts.7"):
        check_coverage({**published, name: published[name] * 2}, loaded)
    without = {key: tensor for key, tensor in published.items() if key != name}
    with pytest.raises(NotAppliedError, match="51 of 52 modules took the published adapter: 1 that modules need"):
        check_coverage(without, loaded)


def test_answers_do_not_depend_on_the_prompts_beside_them():
    model = llama().eval()
    model.generation_config.repetition_penalty = 2.0  # a base's own habits are none of the trial's
    alone = [greedy_answers(model, [prompt], ends=[63], padding=0)[0] for prompt in ([5, 6, 7, 8, 9], [11])]
    both = greedy_answers(model, [[5, 6, 7, 8, 9], [11]], ends=[63], padding=0)
    assert both == alone
    assert all(63 not in answer for answer in both)
