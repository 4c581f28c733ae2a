"""What vLLM serves, refuses and gets wrong, and the names of served adapters."""

from __future__ import annotations

import pytest

from lora_contract.protocol import Manifest
from lora_contract.serving import Serving, is_name_of, serving_name, whole_serving_name
from lora_contract.serving_rules import SERVING_RULES, serving_faults, serving_note, vllm_rank
from lora_trainer.models.targets import ARCHITECTURES, ROUTED

JOB = "0a1b2c3d-0000-4000-8000-000000000001"


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (4, 8), (16, 16), (24, 32), (96, 128), (257, 320), (400, 512)])
def test_served_rank_is_one_that_vllm_supports(rank, served):
    assert vllm_rank(rank) == served


def test_rank_above_all_that_vllm_supports_is_named():
    with pytest.raises(ValueError, match="up to 512"):
        vllm_rank(513)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_whatever_the_trainer_trains_is_served_on_one_gpu(model_type):
    known = ARCHITECTURES[model_type]
    targets = [*known.targets, *known.shared_expert, *(ROUTED if known.routed_experts else ())]
    assert serving_faults(model_type, targets) == []
    assert serving_note(model_type, targets).startswith("vLLM loads it as it is.")
    assert set(SERVING_RULES) == set(ARCHITECTURES)


def test_linear_attention_of_qwen3_next_is_served_on_one_gpu_only():
    targets = ARCHITECTURES["qwen3_next"].targets
    [fault] = serving_faults("qwen3_next", targets, tensor_parallel=2)
    assert "in_proj_qkvz and in_proj_ba" in fault
    assert "2 GPUs" in fault
    assert "in_proj_qkvz" in serving_note("qwen3_next", targets)
    assert serving_faults("qwen3_next", ["q_proj", "out_proj"], tensor_parallel=2) == []


@pytest.mark.parametrize(
    ("model_type", "target"),
    [("mixtral", "gate_proj"), ("mixtral", "experts.down_proj"), ("qwen3_next", "experts.down_proj"), ("llama", "fc1")],
)
def test_module_that_vllm_does_not_wrap_refuses_the_adapter(model_type, target):
    [fault] = serving_faults(model_type, ["q_proj", target])
    assert f"wraps no {target} of" in fault
    assert "q_proj" not in fault
    assert serving_note(model_type, ["q_proj", target]) == fault


def test_unknown_architecture_has_a_note_and_no_faults_of_modules():
    assert serving_faults("new", ["anything"], tensor_parallel=8) == []
    assert "not known" in serving_note("new", ["anything"])


def test_served_name_is_the_applications_or_holds_the_whole_id():
    assert serving_name(JOB) == "adapter-0a1b2c3d"
    assert whole_serving_name(JOB) == f"adapter-{JOB}"
    assert is_name_of("adapter-0a1b2c3d", JOB)
    assert is_name_of(f"adapter-{JOB}", JOB)
    assert not is_name_of("adapter-0a1b2c3e", JOB)
    with pytest.raises(ValueError, match="letters, digits"):
        serving_name("../../etc")


@pytest.mark.parametrize(
    "told", [{"name": "../x", "folder": "/"}, {"name": "adapter-a/b", "folder": "/"}, {"folder": "/"}, "x", 3, []]
)
def test_manifest_with_an_odd_serving_is_read_without_it(told):
    manifest = Manifest.model_validate({"job_id": "j", "run_id": "r", "files": [], "serving": told})
    assert manifest.serving is None


def test_serving_travels_in_the_manifest():
    serving = Serving(name="adapter-0a1b2c3d", folder="/runpod-volume/lora-adapters/adapter-0a1b2c3d")
    text = Manifest(job_id="j", run_id="r", files=[], serving=serving).model_dump_json()
    assert Manifest.model_validate_json(text).serving == serving
