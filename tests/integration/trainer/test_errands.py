"""Requests that are no training, through the real handler: the volume is filled, and the machine is checked."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from lora_contract.errands import ErrandResult
from lora_contract.serving import SERVING_FOLDER
from lora_trainer import handler as handler_module
from lora_trainer.errands import examination
from lora_trainer.handler import handler
from lora_trainer.settings import Settings
from sandbox.runpod import LocalRunPod
from tests.integration.trainer.hub import COMMIT, FILES, WANTED_BYTES, Hub, hub_environment, serve_hub
from tests.processes.waiting import PATIENCE_SECONDS, awaited, until

PREFETCH = {"protocol": 1, "kind": "prefetch", "models": ["org/model"]}
FITNESS = {"protocol": 1, "kind": "fitness"}
HELPERS = "tests.integration.trainer.unfit"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, and an environment in which this process's children download from it to the volume `tmp_path`."""
    with serve_hub() as address:
        for name, value in hub_environment(address, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LORA_TRAINER_VOLUME", str(tmp_path / "volume"))
        monkeypatch.setenv("LORA_TRAINER_PROGRESS_SECONDS", "0.2")
        monkeypatch.setenv("LORA_TRAINER_SETTLE_SECONDS", "0")
        yield address


async def ask(request):
    output = await handler({"id": "errand", "input": request})
    json.dumps(output)
    return ErrandResult.model_validate(output)


def weights(volume, name="model.safetensors"):
    return volume / f"huggingface-cache/hub/models--org--model/snapshots/{COMMIT}/{name}"


async def test_prefetch_fills_the_volume_and_then_finds_the_model_there(hub, tmp_path):
    first = await ask(PREFETCH)
    assert first.error is None
    assert [(model.model, model.revision, model.status) for model in first.models] == [
        ("org/model", COMMIT, "downloaded")
    ]
    assert first.models[0].bytes == WANTED_BYTES
    assert weights(tmp_path / "volume").read_bytes() == FILES["model.safetensors"]
    assert (tmp_path / "volume" / SERVING_FOLDER).is_dir(), "vLLM does not start without it"
    Hub.served.clear()
    second = await ask({**PREFETCH, "models": [f"org/model@{COMMIT}", f"org/model@{COMMIT}"]})
    assert [model.status for model in second.models] == ["present"], "a model that is named twice is brought once"
    assert Hub.served == []


async def test_killed_prefetch_keeps_finished_files_and_leaves_no_parts(hub, tmp_path):
    volume = tmp_path / "volume"
    Hub.hold = threading.Event()
    task = asyncio.create_task(ask(PREFETCH))
    await asyncio.to_thread(until, Hub.begun.is_set, "the download begins")
    await asyncio.to_thread(until, weights(volume, "model-1.safetensors").is_file, "the first file is finished")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    Hub.hold.set()
    Hub.hold = None
    (part,) = volume.rglob("*.incomplete")
    os.utime(part, (0, 0))  # the container died long ago
    assert (await ask(PREFETCH)).error is None
    served = [name for name, _ in Hub.served]
    assert served.count("model-1.safetensors") == 1, "a finished file was downloaded again"
    assert weights(volume).read_bytes() == FILES["model.safetensors"]
    assert list(volume.rglob("*.incomplete")) == [], "the killed process's part would fill the volume"


async def test_machine_that_is_taken_away_ends_a_prefetch_with_a_sentence(hub):
    Hub.hold = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        task = asyncio.create_task(ask(PREFETCH))
        await asyncio.to_thread(until, Hub.begun.is_set, "the download begins")
        os.kill(os.getpid(), signal.SIGTERM)
        result = await asyncio.wait_for(task, PATIENCE_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert result.error.code == "interrupted"
    assert "files that are finished are kept" in result.error.remedy


async def test_volume_that_is_too_small_is_known_before_the_first_byte(hub, monkeypatch):
    monkeypatch.setenv("LORA_TEST_FREE_BYTES", str(2 << 30))
    monkeypatch.setattr("lora_trainer.errands.errand.PREFETCH_CHILD", HELPERS)
    result = await ask(PREFETCH)
    assert result.error.code == "disk_full"
    assert "needs 0.0 GB, but 2.1 GB are free" in result.error.message
    assert "Make the network volume larger" in result.error.remedy
    assert "model.safetensors" not in [name for name, _ in Hub.served]


async def test_prefetch_without_a_network_volume_is_refused(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("LORA_TRAINER_VOLUME")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = await ask(PREFETCH)
    assert result.error.code == "volume_missing"
    assert "Attach a network volume" in result.error.remedy
    assert Hub.served == []


async def test_model_in_the_images_cache_needs_no_volume(hub, monkeypatch, tmp_path):
    assert (await ask(PREFETCH)).error is None
    monkeypatch.delenv("LORA_TRAINER_VOLUME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home").mkdir(exist_ok=True)
    shutil.move(tmp_path / "volume/huggingface-cache/hub", tmp_path / "home/hub")
    result = await ask(PREFETCH)
    assert result.error is None
    assert [model.status for model in result.models] == ["cached"]


async def test_unknown_model_is_named_before_anything_is_downloaded(hub):
    result = await ask({**PREFETCH, "models": ["org/model", "org/other"]})
    assert result.error.code == "base_model_unknown"
    assert "org/other" in result.error.message
    assert "model.safetensors" not in [name for name, _ in Hub.served]


@pytest.mark.parametrize(
    ("request_input", "words"),
    [
        ({**PREFETCH, "models": []}, "models"),
        ({**PREFETCH, "models": ["../../etc/passwd"]}, "organisation/model"),
        ({**PREFETCH, "models": [f"org/m{n}" for n in range(99)]}, "models"),
        ({**PREFETCH, "protocol": 7}, "protocol 7"),
        ({"kind": "erase"}, "kind"),
        ({"kind": ["fitness"]}, "kind"),
    ],
)
async def test_malformed_errand_is_refused_with_a_sentence(request_input, words):
    result = await ask(request_input)
    assert result.error.code == "request_invalid"
    assert words in result.error.message


async def test_download_process_that_dies_is_reported(hub, monkeypatch):
    monkeypatch.setenv("LORA_TEST_SABOTAGE", "exit")
    monkeypatch.setattr("lora_trainer.errands.errand.PREFETCH_CHILD", HELPERS)
    result = await ask(PREFETCH)
    assert result.error.code == "child_crashed"
    assert "exit code 7" in result.error.message


@pytest.mark.gpu_stack
def test_endpoint_prefetches_with_progress_and_checks_itself(hub, tmp_path):
    """With RunPod's own SDK: what `lora-worker deploy prefetch` does."""
    env = {**hub_environment(hub, tmp_path / "home"), "LORA_TRAINER_VOLUME": str(tmp_path / "volume")}
    env |= {"LORA_TRAINER_PROGRESS_SECONDS": "0.2", "LORA_TRAINER_SETTLE_SECONDS": "0"}
    env |= {"LORA_TRAINER_FITNESS_AT_START": "true"}
    Hub.hold = threading.Event()
    with LocalRunPod.start(env=env) as runpod:
        headers = {"Authorization": f"Bearer {runpod.api_key}"}
        with httpx.Client(base_url=runpod.api_url, headers=headers, trust_env=False, timeout=30) as http:
            job = http.post("/run", json={"input": PREFETCH}).json()["id"]
            status = _poll(http, job, lambda answer: answer.get("output", {}).get("done_bytes", 0) > 1 << 20)
            assert status["status"] == "IN_PROGRESS"
            assert status["output"]["model"] == "org/model"
            assert status["output"]["total_bytes"] == WANTED_BYTES
            Hub.hold.set()
            done = _poll(http, job, lambda answer: answer["status"] not in {"IN_QUEUE", "IN_PROGRESS"})
            assert done["status"] == "COMPLETED", runpod.logs()
            assert ErrandResult.model_validate(done["output"]).models[0].status == "downloaded"
            assert "All fitness checks passed" in runpod.logs(), "a fit machine takes jobs"
            job = http.post("/run", json={"input": FITNESS}).json()["id"]
            done = _poll(http, job, lambda answer: answer["status"] not in {"IN_QUEUE", "IN_PROGRESS"})
    result = ErrandResult.model_validate(done["output"])
    assert result.error is None
    assert [check.name for check in result.checks if check.ok] == [
        "memory", "volume", "disk", "gpu", "quantisation", "attention", "linear_attention",
    ]  # fmt: skip
    findings = {check.name: check.finding for check in result.checks}
    assert "no GPU" in findings["gpu"]
    assert "agrees with the reference on the CPU" in findings["quantisation"]


def _poll(http, job, enough):
    return awaited(lambda: http.get(f"/status/{job}").json(), "the errand is so far", fits=enough)


def test_unfit_machine_takes_no_job_and_ends(tmp_path):
    env = {
        "LORA_TRAINER_FITNESS_AT_START": "true",
        "LORA_TRAINER_VOLUME": str(tmp_path),
        "LORA_TRAINER_LEAST_FREE_GB": "1000000",
    }
    with LocalRunPod.start(env=env) as runpod:
        headers = {"Authorization": f"Bearer {runpod.api_key}"}
        with httpx.Client(base_url=runpod.api_url, headers=headers, trust_env=False, timeout=30) as http:
            job = http.post("/run", json={"input": FITNESS}).json()["id"]
            until(lambda: "Worker is unhealthy, exiting" in runpod.logs(), "the worker ends", state=runpod.logs)
            assert http.get(f"/status/{job}").json()["status"] == "IN_QUEUE"
        assert "This machine is not fit for training" in runpod.logs()
        assert "LORA_TRAINER_LEAST_FREE_GB" in runpod.logs()
        assert runpod.ledger.executions == []


async def test_start_checks_only_where_the_settings_say_so(monkeypatch, tmp_path):
    made = []

    async def examine(settings):
        made.append(settings)
        return [examination.FitnessCheck(name="gpu", ok=False, finding="It is broken.")]

    monkeypatch.setattr(handler_module, "examine", examine)
    monkeypatch.setenv("LORA_TRAINER_FITNESS_AT_START", "false")
    await handler_module.check_fitness()
    assert made == []
    monkeypatch.setenv("LORA_TRAINER_FITNESS_AT_START", "true")
    with pytest.raises(RuntimeError, match="gpu: It is broken"):
        await handler_module.check_fitness()


@pytest.mark.parametrize(
    ("sabotage", "name", "words"),
    [
        ("hang", "second", "did not end within"),
        ("segfault", "second", "SIGSEGV"),
        ("exit", "start", "exit code 7"),
        ("raise", "second", "ZeroDivisionError"),
    ],
)
async def test_check_that_hangs_crashes_or_raises_has_failed(sabotage, name, words, monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_TEST_SABOTAGE", sabotage)
    settings = Settings(volume=tmp_path, check_seconds=PATIENCE_SECONDS if sabotage != "hang" else 3)
    checks = await examination.examine(settings, child=HELPERS)
    (failed,) = [check for check in checks if not check.ok]
    assert failed.name == name
    assert words in failed.finding
    assert examination.as_unfit(checks).message.startswith("This machine is not fit")


def test_handlers_process_never_imports_torch():
    """Torch in this process would hold memory of the GPU as long as the container lives."""
    code = "import sys, lora_trainer.handler, runpod; sys.exit({'torch', 'transformers'} & set(sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
