"""The handler end to end on the GPU: a request in, an adapter with its manifest out."""

import hashlib
import json

import pytest
import respx

from lora_contract.protocol import Manifest
from lora_trainer.handler import handler
from sandbox.sample_text import write_sample_dataset
from tests.unit.trainer.project import FakeProject, request_input

pytestmark = pytest.mark.gpu


async def test_a_request_becomes_a_published_adapter_with_its_manifest(tmp_path, tiny_model, monkeypatch):
    monkeypatch.delenv("RUNPOD_WEBHOOK_POST_OUTPUT", raising=False)
    monkeypatch.setenv("LORA_TRAINER_VOLUME", str(tmp_path))
    monkeypatch.setenv("LORA_TRAINER_SETTLE_SECONDS", "0")
    monkeypatch.setenv("LORA_TRAINER_GRANT_POLL_SECONDS", "0.1")
    write_sample_dataset(tmp_path / "dataset", conversations=16)
    content = (tmp_path / "dataset").read_bytes()
    with respx.mock(assert_all_called=False) as router:
        project = FakeProject(router)
        project.dataset = content
        request = request_input(
            hyperparameters={"base_model": str(tiny_model), "epochs": 1, "max_length": 256, "learning_rate": 5e-3},
        )
        request["dataset"] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        request["limits"] = {"max_seconds": 600, "grant_wait_seconds": 30}
        result = await handler({"id": "gpu-job", "input": request})
    assert result["status"] == "completed", result
    assert project.upload_order[-1].endswith("manifest.json")
    manifest = Manifest.model_validate(json.loads(project.uploads["manifest.json"]))
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {file.path.split("/")[-1] for file in manifest.files}
    assert manifest.summary.gpu_type
    assert manifest.metrics.final_training_loss is not None
    proof = manifest.application
    assert proof is not None
    assert (proof.modules, proof.precision) == (28, "bf16"), "a tiny base fits not quantised"
    assert proof.differing > 0
    assert proof.served_loss == pytest.approx(proof.trained_loss, rel=0.05)
