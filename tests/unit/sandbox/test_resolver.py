"""The rules by which vLLM finds an adapter: the sandbox keeps them, and so does vLLM's own file where it is at hand.

Around that file stand small stand-ins of what it imports: environment variables, the request, the class it extends.
"""

import asyncio
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.inference.resolver import find_adapter
from tests.vllm_source import vllm_source

BASE = "org/base"
SOURCE = "vllm/plugins/lora_resolvers/filesystem_resolver.py"


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


def vllm_finds(folder: Path, base_model: str, name: str) -> Path | None:
    source = vllm_source(SOURCE)
    modules = {
        name: types.ModuleType(name)
        for name in ("vllm", "vllm.envs", "vllm.lora", "vllm.lora.request", "vllm.lora.resolver")
    }
    modules["vllm"].envs = modules["vllm.envs"]
    modules["vllm.lora.request"].LoRARequest = LoRARequest
    modules["vllm.lora.resolver"].LoRAResolver = object
    modules["vllm.lora.resolver"].LoRAResolverRegistry = None
    with pytest.MonkeyPatch.context() as patch:
        for module_name, module in modules.items():
            patch.setitem(sys.modules, module_name, module)
        space: dict = {}
        exec(compile(source, SOURCE, "exec"), space)
    request = asyncio.run(space["FilesystemResolver"](str(folder)).resolve_lora(base_model, name))
    return request and Path(request.lora_path)


@pytest.fixture(params=["ours", "vllm"])
def find(request):
    if request.param == "ours":
        return find_adapter
    vllm_source(SOURCE)
    return vllm_finds


def put(folder: Path, name: str, **changes) -> Path:
    (folder / name).mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": BASE, **changes}
    (folder / name / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder / name


def test_adapter_is_found_by_its_folders_name_while_the_server_runs(tmp_path, find):
    assert find(tmp_path, BASE, "adapter-1") is None
    there = put(tmp_path, "adapter-1")
    assert find(tmp_path, BASE, "adapter-1") == there
    assert find(tmp_path, BASE, "adapter-2") is None


def test_alias_with_a_colon_is_found_as_any_name(tmp_path, find):
    assert find(tmp_path, BASE, put(tmp_path, "bot:live").name) == tmp_path / "bot:live"


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": "org/Base"},
        {"base_model_name_or_path": "base"},
        {"base_model_name_or_path": "/runpod-volume/org/base"},
        {"base_model_name_or_path": None, "base_model": BASE, "peft_type": "IA3"},
        {"peft_type": "lora"},
    ],
)
def test_adapter_of_another_base_or_kind_is_not_there(tmp_path, find, changes):
    put(tmp_path, "adapter-1", **changes)
    assert find(tmp_path, BASE, "adapter-1") is None


def test_folder_without_a_configuration_is_not_there(tmp_path, find):
    (tmp_path / "adapter-1").mkdir()
    assert find(tmp_path, BASE, "adapter-1") is None
    (tmp_path / "a-file").write_text("")
    assert find(tmp_path, BASE, "a-file") is None


def test_missing_weights_are_not_looked_for(tmp_path, find):
    assert find(tmp_path, BASE, put(tmp_path, "adapter-1").name) is not None


@pytest.mark.parametrize(("text", "error"), [("{", ValueError), ('{"peft_type": "LORA"}', KeyError)])
def test_broken_configuration_is_an_error_of_the_server(tmp_path, find, text, error):
    (put(tmp_path, "adapter-1") / "adapter_config.json").write_text(text)
    with pytest.raises(error):
        find(tmp_path, BASE, "adapter-1")
