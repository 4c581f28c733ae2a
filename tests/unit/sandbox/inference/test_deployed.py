"""A server that is started with the variables of `deploy inference` finds the trainer's adapters, by vLLM's rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_contract.serving import SERVING_FOLDER
from lora_worker.deployment.file import parse_specification
from lora_worker.deployment.serving_plan import RESOLVER_VARIABLES, answering_endpoint, plan_adapters
from lora_worker.deployment.survey import Survey
from sandbox.inference.vllm import VllmServer
from sandbox.inference.worker_vllm import serve_settings
from tests.unit.sandbox.inference.speaking import BASE, SpeakingModel, put_adapter

FILE = f"""name = "trainer"
image = "i:1"
[inference]
base_model = "{BASE}"
max_lora_rank = 8
max_loras = 2
[[volumes]]
name = "models"
size_gb = 50
data_center = "EU-RO-1"
"""


@pytest.fixture
def variables() -> dict[str, str]:
    specification = parse_specification(FILE, Path("deploy.toml"))
    return answering_endpoint(specification, plan_adapters(specification, [], Survey())).env


async def said(variables: dict[str, str], volume: Path, name: str) -> str | None:
    """What the server answers to a name; None where it knows no such one."""
    server = VllmServer(serve_settings(variables, volume), SpeakingModel())
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
    reply = await server.call("POST", "/v1/chat/completions", body)
    assert reply.body is not None
    return str(reply.body["choices"][0]["message"]["content"]) if reply.status == 200 else None


async def test_an_adapter_on_the_volume_is_called_by_its_name(variables: dict[str, str], tmp_path: Path) -> None:
    put_adapter(tmp_path / SERVING_FOLDER, "adapter-1a2b3c4d")
    assert await said(variables, tmp_path, "adapter-1a2b3c4d") == "adapter-1a2b3c4d"
    assert await said(variables, tmp_path, BASE) == "base"
    for name in ("ENABLE_LORA", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_LORA_RESOLVER_CACHE_DIR"):
        assert await said({**variables, name: ""}, tmp_path, "adapter-1a2b3c4d") is None, name


def test_without_the_folder_the_server_does_not_start(variables: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be set to a valid directory"):
        serve_settings(variables, tmp_path)
    without = {name: value for name, value in variables.items() if name not in RESOLVER_VARIABLES}
    assert serve_settings(without, tmp_path).resolver_folder is None
