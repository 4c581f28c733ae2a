"""`deploy inference …` against a local RunPod: an endpoint that answers beside the trainer's, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_worker.deployment.releasing import ALIASES_AT
from sandbox.runpod import LocalRunPod
from tests.commands import check_keys
from tests.integration.worker.deployment.console import call, deploy, endpoints, volumes, writes, written

pytestmark = pytest.mark.usefixtures("account")

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
TABLE = f"""
[inference]
base_model = "{LLAMA}"
max_lora_rank = 16
max_loras = 4
env = {{ MAX_NUM_SEQS = "64" }}
"""
NO_VOLUME = '[[volumes]]\nname = "lora-trainer-models"\n'


@pytest.fixture(autouse=True)
def without_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"):
        monkeypatch.delenv(name, raising=False)


def described(text: str = TABLE, *, with_volume: bool = True) -> None:
    written()
    path = Path("deploy.toml")
    whole = path.read_text()
    path.write_text((whole if with_volume else whole[: whole.index("[[volumes]]")]) + text)


def answering(runpod: LocalRunPod) -> dict[str, Any]:
    (found,) = [one for one in endpoints(runpod) if one["name"] == "lora-trainer-inference"]
    return found


def inference(*arguments: str) -> Any:
    done = deploy("inference", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_plan_apply_apply_destroy_leave_trainer_and_volume(runpod: LocalRunPod) -> None:
    described()
    assert deploy("apply", "--yes").exit_code == 0
    (trainer,), (volume,) = endpoints(runpod), volumes(runpod)
    began = len(runpod.ledger.writes)
    assert deploy("inference", "plan", "--fail-on-changes").exit_code == 4
    assert writes(runpod, began) == []
    told = inference("apply", "--yes", "--write-env")
    check_keys("deploy inference apply", told, opaque={"variables"})
    made = answering(runpod)
    assert Path(".env").read_text() == f"LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID={made['id']}\n"
    assert made["networkVolumes"] == [volume["id"]]
    assert made["image"] == "runpod/worker-v1-vllm:v2.25.2"
    assert made["flashboot"] == "FLASHBOOT"
    assert made["workers"] == {"min": 0, "max": 3, "idleTimeout": 60}
    assert made["env"] == {
        "ENABLE_LORA": "true", "GPU_MEMORY_UTILIZATION": "0.9", "MAX_CPU_LORAS": "4", "MAX_LORAS": "4",
        "MAX_LORA_RANK": "16", "MAX_MODEL_LEN": "8192", "MAX_NUM_SEQS": "64", "MODEL_NAME": LLAMA,
        "TENSOR_PARALLEL_SIZE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
        "VLLM_LORA_RESOLVER_CACHE_DIR": "/runpod-volume/lora-adapters", "VLLM_PLUGINS": "lora_filesystem_resolver",
    }  # fmt: skip
    # An alias was moved on the volume: that is no difference to the file, and is not taken away by other changes.
    call(runpod, "PATCH", f"serverless/{made['id']}", {"env": {**made["env"], ALIASES_AT: "noon"}})
    planned = inference("plan")
    check_keys("deploy inference plan", planned)
    assert planned["changes_needed"] == 0
    described(TABLE.replace("64", "32") + "[inference.workers]\nmin = 1\n")
    inference("apply", "--yes")
    changed = answering(runpod)
    assert changed["workers"]["min"] == 1
    assert changed["env"] == {**made["env"], "MAX_NUM_SEQS": "32", ALIASES_AT: "noon"}
    check_keys("deploy inference destroy", inference("destroy", "--yes", "--with-volumes"))
    assert endpoints(runpod) == [trainer]
    assert volumes(runpod) == [volume]
    assert writes(runpod, began) == ["createEndpoint", "updateEndpoint", "updateEndpoint", "deleteEndpoint"]


@pytest.mark.parametrize("action", ["respond_after", "disconnect"])
def test_a_fault_at_each_write_makes_no_second_endpoint(runpod: LocalRunPod, action: Any) -> None:
    for operation in ("createNetworkVolume", "createEndpoint", "updateEndpoint", "deleteEndpoint"):
        runpod.faults.add(operation, action, status=500)
    described()
    inference("apply", "--yes")
    described(TABLE.replace("64", "32"))
    inference("apply", "--yes")
    assert answering(runpod)["env"]["MAX_NUM_SEQS"] == "32"
    inference("destroy", "--yes")
    assert endpoints(runpod) == []


def test_adapters_without_a_volume_are_variables_that_apply_keeps(runpod: LocalRunPod) -> None:
    described(with_volume=False)
    inference("apply", "--yes")
    before = answering(runpod)
    assert "VLLM_PLUGINS" not in before["env"]
    one = inference("modules", "--add", "bot=org/bot", "--yes")
    check_keys("deploy inference modules", one)
    assert answering(runpod) == {**before, "env": {**before["env"], "LORA_MODULES": '{"name":"bot","path":"org/bot"}'}}
    inference("modules", "--add", "cat=/models/cat", "--yes")
    assert inference("plan")["changes_needed"] == 0
    described(TABLE.replace("64", "32"), with_volume=False)
    inference("apply", "--yes")
    assert inference("modules") == {
        "modules": [{"name": "bot", "path": "org/bot"}, {"name": "cat", "path": "/models/cat"}]
    }
    inference("modules", "--remove", "bot", "--remove", "cat", "--yes")
    assert answering(runpod) == {**before, "env": {**before["env"], "MAX_NUM_SEQS": "32"}}


def test_adapters_in_variables_go_with_a_merged_export(runpod: LocalRunPod) -> None:
    described(with_volume=False)
    inference("apply", "--yes")
    inference("modules", "--add", "cat=/models/cat", "--yes")
    described(TABLE.replace(f'base_model = "{LLAMA}"', 'merged_model = "org/merged"'), with_volume=False)
    assert "will be taken out, since a merged export takes none: cat" in inference("plan")["notes"][-1]
    inference("apply", "--yes")
    left = answering(runpod)["env"]
    assert left["MODEL_NAME"] == "org/merged"
    assert not {"ENABLE_LORA", "LORA_MODULES", "VLLM_EXTRA_ARGS"} & set(left)


def test_what_would_answer_wrongly_makes_nothing(runpod: LocalRunPod) -> None:
    described(TABLE.replace(LLAMA, "Qwen/Qwen3-Next-80B-A3B-Instruct") + "[inference.gpu]\ncount = 2\n")
    refused = deploy("inference", "apply", "--yes")
    assert refused.exit_code == 1
    assert "vLLM cuts the LoRA weights of in_proj_qkvz and in_proj_ba wrongly" in refused.stderr.splitlines()[-1]
    assert endpoints(runpod) == volumes(runpod) == []
