"""What the rules of serving say of vLLM, asked of vLLM's own source where it is at hand."""

from __future__ import annotations

import ast
import sys
import types
from typing import Any, get_args

import pytest
import torch

from lora_contract.serving_rules import SERVING_RULES, VLLM_RANKS
from tests.vllm_source import vllm_source


def part_of(path: str, *names: str) -> Any:
    """A definition inside a file, as source: of a class and its method, or of a name at the top."""
    nodes: list[ast.stmt] = ast.parse(vllm_source(path)).body
    for name in names:
        [found] = [node for node in nodes if name in _names_of(node)]
        nodes = getattr(found, "body", [])
    return found


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return [getattr(node, "name", "")]


def test_ranks_are_those_that_the_server_takes() -> None:
    literal = part_of("vllm/config/lora.py", "MaxLoRARanks").value
    assert get_args(eval(ast.unparse(literal), {"Literal": __import__("typing").Literal})) == VLLM_RANKS


@pytest.mark.parametrize(
    ("change", "refusal"),
    [({}, None), ({"use_dora": True}, "DoRA"), ({"r": 32}, "max_lora_rank"), ({"r": 16}, None)],
)
def test_dora_and_ranks_above_the_servers_are_refused_by_vllm(
    change: dict[str, Any], refusal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = vllm_source("vllm/lora/peft_helper.py")
    stand_ins = {"vllm.config.lora": {"LoRAConfig": object}, "vllm.logger": {"init_logger": lambda _: None}}
    for name in ("vllm", "vllm.config", *stand_ins):
        module = types.ModuleType(name)
        module.__dict__.update(stand_ins.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    space: dict[str, Any] = {"__name__": "peft_helper"}
    monkeypatch.setitem(sys.modules, "peft_helper", types.ModuleType("peft_helper"))
    exec(compile(source, "peft_helper.py", "exec"), space)
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], **change}
    helper, server = space["PEFTHelper"].from_dict(config), types.SimpleNamespace(max_lora_rank=16)
    if refusal is None:
        helper.validate_legal(server)
        return
    with pytest.raises(ValueError, match=refusal):
        helper.validate_legal(server)


CLASSES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "qwen3_next": "Qwen3NextForCausalLM",
}  # fmt: skip


@pytest.mark.parametrize("model_type", CLASSES)
def test_merged_modules_are_those_of_vllms_model(model_type: str) -> None:
    path = f"vllm/model_executor/models/{model_type}.py"
    mapping = ast.literal_eval(part_of(path, CLASSES[model_type], "packed_modules_mapping").value)
    merged = {child for children in mapping.values() for child in children}
    wrapped = set(SERVING_RULES[model_type].wrapped)
    single = {"o_proj", "down_proj", "out_proj"}
    assert merged == wrapped - single
    assert all(f".{name}" in vllm_source(path) or name != "o_proj" for name in wrapped & single)


def test_mistral_is_served_as_llama() -> None:
    assert SERVING_RULES["mistral"] == SERVING_RULES["llama"]
    source = part_of("vllm/model_executor/models/mistral.py", "MistralForCausalLM")
    assert [ast.unparse(base) for base in source.bases] == ["LlamaForCausalLM"]


def test_merged_layer_with_one_output_is_cut_wrongly_for_two_gpus() -> None:
    path = "vllm/lora/layers/column_parallel_linear.py"
    method = part_of(path, "ColumnParallelLinearWithLoRA", "slice_lora_b")
    space: dict[str, Any] = {"torch": torch}
    exec(ast.unparse(method), space)
    rows = torch.arange(16).unsqueeze(1)

    def share(rank: int, gpus: int) -> list[int]:
        layer = types.SimpleNamespace(is_merged_col_linear=True, output_size=len(rows) // gpus, tp_rank=rank)
        return [int(row) for row in space["slice_lora_b"](layer, rows)]

    assert share(0, 1) == list(range(16))
    # With a single output the first GPU holds the first eight rows of the base's weight.
    assert share(0, 2) != list(range(8))
    assert sorted(share(0, 2) + share(1, 2)) == list(range(16))


def test_qwen3_nexts_projections_have_one_output() -> None:
    path = "vllm/model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py"
    source = vllm_source(path)
    for name in ("create_qkvz_proj", "create_ba_proj"):
        [made] = [
            ast.unparse(node) for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]  # fmt: skip
        assert "MergedColumnParallelLinear" in made
        [sizes] = [node for node in ast.walk(ast.parse(made)) if isinstance(node, ast.IfExp)]
        assert ast.unparse(sizes.test) == "self.gqa_interleaved_layout"
        assert isinstance(sizes.body, ast.List)
        assert len(sizes.body.elts) == 1
