"""What lies in the place of a removed adapter is loaded by vLLM's own loader, where vLLM's source is at hand.

Around its three files stand small stand-ins of what they import and don't need for this.
"""

from __future__ import annotations

import ast
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.run.served_adapters import ServedAdapters
from tests.unit.trainer.run.served import make_adapter
from tests.vllm_source import vllm_source

MODULE = "model.layers.0.self_attn.{}_proj"


PARTS = ("peft_helper", "lora_weights", "lora_model")


@pytest.fixture
def vllm(monkeypatch):
    sources = {part: vllm_source(f"vllm/lora/{part}.py") for part in ("utils", *PARTS)}

    def put(name: str, **content: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    class Logger:
        def __getattr__(self, name):
            return lambda *_: None

    for name in ("vllm", "vllm.config", "vllm.lora", "vllm.model_executor", "vllm.model_executor.models", "vllm.utils"):
        put(name)
    put("vllm.config.lora", LoRAConfig=object)
    put("vllm.logger", init_logger=lambda _: Logger())
    put("vllm.model_executor.models.utils", WeightsMapper=object)
    put("vllm.utils.torch_utils", PIN_MEMORY=False)
    monkeypatch.setitem(sys.modules, "regex", re)
    wanted = {"get_lora_id", "is_base_embedding_weights", "parse_fine_tuned_lora_name"}
    found = [n for n in ast.parse(sources["utils"]).body if isinstance(n, ast.FunctionDef) and n.name in wanted]
    utils = put("vllm.lora.utils")
    exec("from __future__ import annotations\n" + "\n".join(map(ast.unparse, found)), utils.__dict__)
    for part in PARTS:
        exec(compile(sources[part], part, "exec"), put(f"vllm.lora.{part}").__dict__)
    return {part: sys.modules[f"vllm.lora.{part}"] for part in PARTS}


def load(vllm: dict[str, Any], folder: Path) -> Any:
    helper = vllm["peft_helper"].PEFTHelper.from_local_dir(str(folder), None)
    helper.validate_legal(types.SimpleNamespace(max_lora_rank=16))
    return vllm["lora_model"].LoRAModel.from_local_checkpoint(
        str(folder), {"q_proj", "k_proj", "v_proj"}, peft_helper=helper, lora_model_id=1, device="cpu",
        dtype=torch.bfloat16,
    ).loras  # fmt: skip


def test_vllm_loads_the_zeros_of_a_removed_adapter(vllm, tmp_path):
    served = ServedAdapters(tmp_path / "served")
    adapter = make_adapter(tmp_path / "artifact")
    served.place(adapter, ["adapter-1"], job_id="job-1", run_id="run-1", is_current=lambda: True)
    assert set(load(vllm, served.folder / "adapter-1")) == {MODULE.format("q"), MODULE.format("v")}
    served.remove({"run-1"})
    loras = load(vllm, served.folder / "adapter-1")
    [lora] = loras.values()
    assert not lora.lora_a.any()
    assert not lora.lora_b.any()
    packed = vllm["lora_weights"].PackedLoRALayerWeights.pack([loras.get(MODULE.format(part)) for part in "qkv"])
    assert [part is None for part in packed.lora_b] == [True, True, False]
