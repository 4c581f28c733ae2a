"""The commands `deploy …` against a local RunPod: nothing is left over, nothing is called twice, every fault heals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandbox.runpod import LocalRunPod, Rights
from tests.commands import check_keys
from tests.integration.trainer.hub import hub_environment, serve_hub
from tests.integration.worker.deployment.console import call, deploy, endpoints, listed, volumes, writes, written

pytestmark = pytest.mark.usefixtures("account")

WRITES = ("createNetworkVolume", "createEndpoint", "updateNetworkVolume", "updateEndpoint", "deleteEndpoint",
          "deleteNetworkVolume")  # fmt: skip


def is_whole(runpod: LocalRunPod) -> bool:
    """Whether there is the endpoint with its volume, each once, and a plan has nothing to do."""
    (endpoint,), (volume,) = endpoints(runpod), volumes(runpod)
    return endpoint["networkVolumes"] == [volume["id"]] and deploy("plan", "--fail-on-changes").exit_code == 0


def test_init_plan_apply_apply_plan_destroy_leave_nothing(runpod: LocalRunPod) -> None:
    written()
    began = len(runpod.ledger.writes)
    assert deploy("plan", "--fail-on-changes").exit_code == 4
    assert writes(runpod, began) == []
    assert deploy("apply", "--yes", "--write-env").exit_code == 0
    (endpoint,) = endpoints(runpod)
    assert endpoint["requestUrls"]["run"].removesuffix("/run") in Path(".env").read_text()
    again = deploy("apply", "--yes", "--json")
    assert json.loads(again.stdout)["changes_needed"] == 0
    assert is_whole(runpod)
    gone = deploy("destroy", "--yes", "--with-volumes")
    assert gone.exit_code == 0, gone.output
    assert endpoints(runpod) == volumes(runpod) == listed(runpod, "templates", "templates") == []
    assert writes(runpod, began) == ["createNetworkVolume", "createEndpoint", "deleteEndpoint", "deleteNetworkVolume"]


@pytest.mark.parametrize("action", ["respond", "respond_after", "disconnect", "drop_answer"])
def test_a_fault_at_each_write_makes_nothing_twice(runpod: LocalRunPod, action: Any) -> None:
    for operation in WRITES:
        runpod.faults.add(operation, action, status=500)
    written()
    assert deploy("apply", "--yes").exit_code == 0
    assert is_whole(runpod)
    path = Path("deploy.toml")
    path.write_text(path.read_text().replace("size_gb = 50", "size_gb = 60").replace("max = 3", "max = 2"))
    changed = deploy("apply", "--yes")
    assert changed.exit_code == 0, changed.output
    assert is_whole(runpod)
    assert volumes(runpod)[0]["size"] == 60
    gone = deploy("destroy", "--yes", "--with-volumes")
    assert gone.exit_code == 0, gone.output
    assert endpoints(runpod) == volumes(runpod) == []


@pytest.mark.parametrize("operation", ["createNetworkVolume", "createEndpoint", "listEndpoints", "listGpuTypes"])
def test_a_lasting_fault_is_one_sentence_and_then_heals(runpod: LocalRunPod, operation: Any) -> None:
    written()
    runpod.faults.add(operation, "respond", status=500, times=None)
    failed = deploy("apply", "--yes")
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[-1].startswith("lora-worker: RunPod failed (500) while it should ")
    runpod.faults.clear()
    assert deploy("apply", "--yes").exit_code == 0
    assert is_whole(runpod)


def test_a_429_is_waited_for(runpod: LocalRunPod) -> None:
    written()
    for operation in ("listEndpoints", "createNetworkVolume", "createEndpoint"):
        runpod.faults.add(operation, "respond", status=429, retry_after_seconds=7)
    done = deploy("apply", "--yes")
    assert done.exit_code == 0
    assert done.stderr.count("RunPod takes no more requests for 7 s (429)") == 3
    assert is_whole(runpod)


DRIFT: list[dict[str, Any]] = [
    {"image": "ghcr.io/me/trainer:0"},
    {"disk": 20, "env": {"A": "1"}},
    {"gpu": {"pools": ["ADA_24"]}},
    {"gpu": {"pools": ["AMPERE_80", "ADA_80_PRO"], "excludedTypes": ["NVIDIA H100 PCIe"], "count": 2}},
    {"gpu": {"minCudaVersion": "", "allowedCudaVersions": ["12.8"]}},
    {"workers": {"min": 1, "max": 1, "idleTimeout": 3600}},
    {"scaling": {"type": "REQUEST_COUNT", "requestCount": 1}},
    {"timeout": 300_000, "flashboot": "FLASHBOOT"},
    {"dataCenterIds": [], "networkVolumes": []},
]


def test_drift_in_every_setting_is_seen_and_mended(runpod: LocalRunPod) -> None:
    written()
    deploy("apply", "--yes")
    (endpoint,) = endpoints(runpod)
    for drift in DRIFT:
        call(runpod, "PATCH", f"serverless/{endpoint['id']}", drift)
        assert deploy("plan", "--fail-on-changes").exit_code == 4, drift
        done = deploy("apply", "--yes")
        assert done.exit_code == 0, (drift, done.output)
        assert is_whole(runpod), drift
        assert endpoints(runpod) == [endpoint]


def test_a_vanished_volume_is_made_again(runpod: LocalRunPod) -> None:
    written()
    deploy("apply", "--yes")
    (endpoint,), (volume,) = endpoints(runpod), volumes(runpod)
    call(runpod, "PATCH", f"serverless/{endpoint['id']}", {"networkVolumes": []})
    call(runpod, "DELETE", f"network-volumes/{volume['id']}")
    assert deploy("apply", "--yes").exit_code == 0
    assert is_whole(runpod)
    assert volumes(runpod)[0]["id"] != volume["id"]


@pytest.mark.parametrize("kind", ["endpoint", "network volume"])
def test_two_of_one_name_are_refused_until_one_is_gone(runpod: LocalRunPod, kind: str) -> None:
    written()
    deploy("apply", "--yes")
    path, (one,) = ("serverless", endpoints(runpod)) if kind == "endpoint" else ("network-volumes", volumes(runpod))
    keys = ("name", "type", "scaling", "image", "gpu") if kind == "endpoint" else ("name", "size", "dataCenter")
    body = {key: one[key] for key in keys}
    if kind == "endpoint":
        body["gpu"] = {"pools": one["gpu"]["pools"]}
    twin = call(runpod, "POST", path, body)
    began = len(runpod.ledger.writes)
    for command in (("plan",), ("apply", "--yes"), ("destroy", "--yes", "--with-volumes")):
        refused = deploy(*command)
        assert refused.exit_code == 1
        assert f"RunPod holds 2 {kind}s named {one['name']}" in refused.stderr
    assert writes(runpod, began) == []
    call(runpod, "DELETE", f"{path}/{twin['id']}")
    assert is_whole(runpod)


@pytest.mark.parametrize("rights", [Rights.READ, Rights.JOBS])
def test_a_key_without_rights_is_named_and_changes_nothing(
    runpod: LocalRunPod, monkeypatch: pytest.MonkeyPatch, rights: Rights
) -> None:
    written()
    monkeypatch.setenv("RUNPOD_API_KEY", key := runpod.add_key(rights))
    refused = deploy("apply", "--yes")
    assert refused.exit_code == 1
    assert "RunPod's API key has no right to " in refused.stderr
    assert key not in refused.output
    assert endpoints(runpod) == volumes(runpod) == []
    monkeypatch.setenv("RUNPOD_API_KEY", runpod.api_key)
    assert deploy("apply", "--yes").exit_code == 0
    assert is_whole(runpod)


def test_stock_and_price_of_each_pool_are_shown(runpod: LocalRunPod) -> None:
    written()
    runpod.set_stock("ADA_80_PRO", "NONE")
    planned = deploy("plan", "--json")
    pools = {pool["pool"]: pool for pool in json.loads(planned.stdout)["pools"]}
    assert (pools["ADA_80_PRO"]["stock"], pools["ADA_80_PRO"]["usd_per_hour"]) == ("NONE", 4.18)
    assert "$2.74" in deploy("plan").stdout


def test_the_keys_of_each_answer_stay(runpod: LocalRunPod) -> None:
    written()
    deploy("apply", "--yes")
    (endpoint,) = endpoints(runpod)
    call(runpod, "PATCH", f"serverless/{endpoint['id']}", {"disk": 20})
    for command in (("plan",), ("apply", "--yes", "--write-env"), ("destroy", "--yes")):
        check_keys(f"deploy {command[0]}", json.loads(deploy(*command, "--json").stdout), opaque={"variables"})


def test_prefetch_fills_the_volume_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub() as hub:
        env = {**hub_environment(hub, tmp_path / "home"), "LORA_TRAINER_SETTLE_SECONDS": "0"}
        with LocalRunPod.start(env=env, rest_calls_per_minute=100_000) as runpod:
            monkeypatch.setenv("RUNPOD_API_KEY", runpod.api_key)
            monkeypatch.setenv("LORA_WORKER_RUNPOD_API_URL", runpod.rest_url)
            written()
            early = deploy("prefetch", "org/model")
            assert (early.exit_code, "`lora-worker deploy apply` makes it" in early.stderr) == (1, True)
            assert deploy("apply", "--yes").exit_code == 0
            first = deploy("prefetch", "org/model", "--json")
            assert first.exit_code == 0, first.output
            answer = json.loads(first.stdout)
            check_keys("deploy prefetch", answer)
            assert [(model["model"], model["status"]) for model in answer["models"]] == [("org/model", "downloaded")]
            again = deploy("prefetch", "org/model")
            assert "was on the volume already: nothing to do" in again.stdout
            unknown = deploy("prefetch", "org/other")
            assert unknown.exit_code == 3
            assert "org/other" in unknown.stderr


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        (["../etc/passwd"], "is no base model: write organisation/model"),
        ([f"org/m{number}" for number in range(11)], "takes 10 base models at most"),
    ],
)
def test_prefetch_refuses_what_is_no_model_before_it_calls(models: list[str], sentence: str) -> None:
    written()
    refused = deploy("prefetch", *models)
    assert refused.exit_code == 2
    assert sentence in refused.stderr


def test_prefetch_without_a_volume_is_refused() -> None:
    assert deploy("init", "--image", "ghcr.io/me/trainer:1").exit_code == 0
    refused = deploy("prefetch", "org/model")
    assert refused.exit_code == 2
    assert "names no volume, so that what is downloaded would be gone with the worker" in refused.stderr
