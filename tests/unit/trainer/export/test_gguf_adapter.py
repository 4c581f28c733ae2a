"""An adapter as GGUF adds in llama.cpp what it adds here, under the names and in the order of its rows."""

import shutil
import sys

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from lora_trainer.errors import ExportRefusedError
from lora_trainer.export.adapter import read_adapter
from lora_trainer.export.gguf_adapter import export_gguf
from tests.unit.trainer.export.making import RANK, change_config, make_adapter, make_base

pytestmark = pytest.mark.gpu_stack

HEADS, KV_HEADS, EXPERTS = 4, 2, 16


def silent(_):
    """Nobody listens."""


def read(target):
    """Alpha, and the matrices by name, in the order of dimensions that torch has."""
    reader = GGUFReader(target / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    tensors = {tensor.name: torch.tensor(tensor.data.copy()) for tensor in reader.tensors}
    return fields, tensors


def added(tensors, name, alpha):
    """What llama.cpp adds to a weight."""
    a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    return alpha / a.shape[-2] * (b @ a)


def published(folder, name):
    matrices = load_file(folder / "adapter/adapter_model.safetensors")
    a, b = (matrices[f"base_model.model.model.layers.0.{name}.lora_{part}.weight"].float() for part in "AB")
    return b @ a


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folders = {}
    for architecture, chosen in (("llama", {}), ("qwen3_moe", {"target_experts": True})):
        folder = folders[architecture] = tmp_path_factory.mktemp(architecture)
        make_adapter(folder / "adapter", make_base(folder / "base", architecture), **chosen)
    return folders


@pytest.fixture
def llama(made, tmp_path):
    from lora_trainer.models.bases import Base

    shutil.copytree(made["llama"], tmp_path / "llama")
    return tmp_path / "llama", Base("org/base", None, tmp_path / "llama/base")


def in_pairs(rows, heads):
    """The rows in the order of llama.cpp, where a rotation turns two rows that are neighbours."""
    each = rows.shape[0] // heads
    order = [head * each + half * each // 2 + at for head in range(heads) for at in range(each // 2) for half in (0, 1)]
    return rows[order]


def test_llamas_rows_are_in_the_order_of_llama_cpp(llama):
    folder, base = llama
    record = export_gguf(read_adapter(folder / "adapter"), base, folder / "out", silent)
    assert record.complete
    fields, tensors = read(folder / "out")
    alpha = fields["adapter.lora.alpha"]
    assert fields["general.architecture"] == "llama"
    assert len(tensors) == 2 * record.modules
    scale = alpha / RANK
    for name, place, heads in (("q_proj", "attn_q", HEADS), ("k_proj", "attn_k", KV_HEADS)):
        expected = in_pairs(published(folder, f"self_attn.{name}"), heads)
        assert torch.allclose(added(tensors, f"blk.0.{place}.weight", alpha), scale * expected, atol=1e-6)
    for name, place in (("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("mlp.up_proj", "ffn_up")):
        expected = scale * published(folder, name)
        assert torch.allclose(added(tensors, f"blk.0.{place}.weight", alpha), expected, atol=1e-6)


def test_factors_that_llama_cpp_does_not_know_go_into_b(llama):
    folder, base = llama
    change_config(folder / "adapter", use_rslora=True, lora_alpha=16, alpha_pattern={"up_proj": 64})
    export_gguf(read_adapter(folder / "adapter"), base, folder / "out", silent)
    fields, tensors = read(folder / "out")
    for name, place, alpha in (("mlp.up_proj", "ffn_up", 64), ("mlp.gate_proj", "ffn_gate", 16)):
        found = added(tensors, f"blk.0.{place}.weight", fields["adapter.lora.alpha"])
        assert torch.allclose(found, alpha / RANK**0.5 * published(folder, name), atol=1e-5)


def test_experts_lie_in_one_matrix_and_qwens_rows_keep_their_order(made):
    from lora_trainer.models.bases import Base

    folder = made["qwen3_moe"]
    export_gguf(read_adapter(folder / "adapter"), Base("org/base", None, folder / "base"), folder / "out", silent)
    fields, tensors = read(folder / "out")
    alpha = fields["adapter.lora.alpha"]
    assert fields["general.architecture"] == "qwen3moe"
    scale = alpha / RANK
    found = added(tensors, "blk.0.ffn_down_exps.weight", alpha)
    for number in (0, EXPERTS - 1):
        expected = scale * published(folder, f"mlp.experts.{number}.down_proj")
        assert torch.allclose(found[number], expected, atol=1e-6)
    expected = scale * published(folder, "self_attn.q_proj")
    assert torch.allclose(added(tensors, "blk.0.attn_q.weight", alpha), expected, atol=1e-6)


def test_modelfile_stands_beside_it(llama):
    folder, base = llama
    export_gguf(read_adapter(folder / "adapter"), base, folder / "out", silent)
    assert "FROM ./base.gguf\nADAPTER ./adapter.gguf\n" in (folder / "out/Modelfile").read_text()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen3_next"}, "qwen3_next is not converted here"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 7}, "no pairs of 7 heads"),
    ],
)
def test_what_would_come_out_wrong_is_refused_with_the_way_round(llama, config, words):
    import json

    folder, base = llama
    path = base.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(ExportRefusedError, match=words) as refused:
        export_gguf(read_adapter(folder / "adapter"), base, folder / "out", silent)
    assert "convert_hf_to_gguf.py" in refused.value.hint
    assert not (folder / "out").exists()


def test_missing_package_is_named(llama, monkeypatch):
    folder, base = llama
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportRefusedError, match="gguf is not installed") as refused:
        export_gguf(read_adapter(folder / "adapter"), base, folder / "out", silent)
    assert "pip install gguf" in refused.value.hint
