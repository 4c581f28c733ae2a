"""The commands deploy init, plan, apply and destroy: what they ask, print, and exit with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import respx
from typer.testing import CliRunner, Result

from lora_worker.commands.cli import app
from lora_worker.deployment.file import read_specification
from lora_worker.deployment.inference import Inference
from tests.commands import check_keys
from tests.unit.worker.deployment.fake_account import Account
from tests.unit.worker.variables import OTHER_NAMES, SETTINGS

KEY = "rpa_SECRETKEY123"
INIT = ("init", "--image", "ghcr.io/me/trainer:1", "--data-center", "EU-RO-1", "--pool", "AMPERE_80")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, and RunPod's key alone: nothing of Supabase is needed."""
    monkeypatch.chdir(tmp_path)
    for name in (*SETTINGS, *OTHER_NAMES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    return tmp_path


@pytest.fixture
def account() -> Iterator[Account]:
    account = Account()
    with respx.mock(base_url="https://api.runpod.io", assert_all_called=False) as api:
        api.route().mock(side_effect=account)
        yield account


def deploy(*arguments: str, answers: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["deploy", *arguments], input=answers, catch_exceptions=False)
    assert KEY not in result.output
    return result


def answer_of(result: Result) -> Any:
    return json.loads(result.stdout)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody can be asked."""
    for module in ("terminal", "deploy_init"):
        monkeypatch.setattr(f"lora_worker.commands.{module}.may_ask", lambda: True)


def test_init_with_options_asks_nothing_and_overwrites_nothing(folder: Path) -> None:
    done = deploy(*INIT)
    assert done.exit_code == 0
    written = (folder / "deploy.toml").read_text()
    assert 'data_center = "EU-RO-1"' in written
    again = deploy(*INIT, "--name", "other")
    assert (again.exit_code, (folder / "deploy.toml").read_text()) == (2, written)
    assert "--force overwrites it" in again.stderr
    assert deploy(*INIT, "--name", "other", "--force", "--json").exit_code == 0
    assert 'name = "other"' in (folder / "deploy.toml").read_text()
    path = folder / "answers.toml"
    assert deploy(*INIT, "--inference", "--file", str(path)).exit_code == 0
    assert path.read_text() == written.replace("# [inference]", "[inference]")
    assert read_specification(path).inference == Inference()


@pytest.mark.usefixtures("terminal")
def test_init_shows_what_runpod_offers_before_it_asks(account: Account) -> None:
    done = deploy("init", answers="\ni:1\n\n\n\n\n")
    assert done.exit_code == 0
    for words in ("AMPERE_80", "A100 PCIe, A100 SXM", "$4.18", "data centres with volumes: EU-RO-1, US-KS-2"):
        assert words in done.stderr
    account.fail("GET catalog", 500, times=20)
    assert deploy("init", "--force", answers="\ni:1\n\n\n\n\n").exit_code == 0


@pytest.mark.usefixtures("terminal")
def test_init_asks_for_what_no_option_says(folder: Path) -> None:
    answers = "\nghcr.io/me/trainer:2\nQwen/Qwen3-8B, Qwen/Qwen2.5-7B-Instruct\nADA_24\nmany\n4\neu-ro-1,US-KS-2\n\n"
    assert deploy("init", answers=answers).exit_code == 0
    written = (folder / "deploy.toml").read_text()
    for line in ('name = "lora-trainer"', 'image = "ghcr.io/me/trainer:2"', 'pools = ["ADA_24"]', "max = 4",
                 'base_models = ["Qwen/Qwen3-8B", "Qwen/Qwen2.5-7B-Instruct"]', "size_gb = 100",
                 'name = "lora-trainer-models-us-ks-2"'):  # fmt: skip
        assert line in written


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "--image is missing"),
        (("--image", "NOT AN IMAGE"), "image: write an image's reference"),
        (("--image", "i:1", "--volume-gb", "50"), "--volume-gb needs --data-center"),
        (("--image", "i:1", "--volume-gb", "5", "--data-center", "EU-RO-1"), "volumes[1].size_gb: must be"),
        (("--image", "i:1", "--file", "no/such/folder.toml"), "can't be written"),
    ],
)
def test_init_refuses_a_wrong_option_and_writes_nothing(folder: Path, options: tuple[str, ...], sentence: str) -> None:
    done = deploy("init", *options)
    assert done.exit_code in {1, 2}
    assert sentence in done.stderr
    assert list(folder.iterdir()) == []


def test_the_whole_life_of_a_deployment(account: Account, folder: Path) -> None:
    deploy(*INIT)
    first = deploy("plan", "--fail-on-changes")
    assert first.exit_code == 4
    assert "+ create endpoint lora-trainer" in first.stdout
    assert "$2.74" in first.stdout
    assert "at most $8.22 an hour" in first.stdout
    assert account.writes == []

    (folder / ".env").write_text("KEEP=me\n")
    made = deploy("apply", "--yes", "--write-env")
    assert made.exit_code == 0
    (endpoint,) = account.endpoints
    url = f"GPU_CLUSTER_API_URL=https://api.runpod.ai/v2/{endpoint}"
    assert url in made.stdout
    assert (folder / ".env").read_text() == (
        f"KEEP=me\n{url}\nLORA_WORKER_ENDPOINT_GPU_COUNT=1\nLORA_WORKER_ENDPOINT_GPU_TYPE=A100-80GB\n"
    )

    again = deploy("apply", "--yes")
    assert "nothing to change" in again.stdout
    assert account.writes == ["POST network-volumes", "POST serverless"]
    assert deploy("plan", "--fail-on-changes").exit_code == 0

    kept = deploy("destroy", "--yes")
    assert "it is billed on" in kept.stdout
    gone = deploy("destroy", "--yes", "--with-volumes")
    assert gone.exit_code == 0
    assert "nothing of the deployment is left" in gone.stdout
    assert account.endpoints == account.volumes == {}
    assert "nothing to delete" in deploy("destroy", "--yes").stdout


def test_each_command_answers_as_json(account: Account) -> None:
    begun = answer_of(deploy(*INIT, "--json"))
    assert begun == {"file": "deploy.toml"}
    check_keys("deploy init", begun)
    planned = answer_of(deploy("plan", "--json"))
    assert set(planned) == {
        "changes_needed", "actions", "pools", "most_usd_per_hour", "always_usd_per_hour", "notes",
    }  # fmt: skip
    assert planned["changes_needed"] == 2
    assert set(planned["actions"][0]) == {"action", "resource", "name", "id", "changes", "note"}
    assert set(planned["pools"][0]) == {"pool", "gpus", "memory_gb", "usd_per_hour", "stock"}
    applied = answer_of(deploy("apply", "--yes", "--json"))
    assert set(applied) == {*planned, "endpoint_id", "variables", "env_file_changed"}
    assert applied["endpoint_id"] in account.endpoints
    destroyed = answer_of(deploy("destroy", "--yes", "--with-volumes", "--json"))
    assert destroyed["deleted"] == 2


def test_a_variable_that_hides_the_new_address_is_named(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy(*INIT)
    monkeypatch.setenv("GPU_CLUSTER_API_URL", "https://api.runpod.ai/v2/former")
    hidden = deploy("apply", "--yes", "--write-env")
    assert "GPU_CLUSTER_API_URL is set to something else in the environment" in hidden.stderr
    assert "former" not in hidden.output


def test_a_gpu_type_that_bills_several_cards_alike_is_named(account: Account, folder: Path) -> None:
    deploy(*INIT, "--pool", "ADA_80_PRO")
    (folder / ".env").write_text("LORA_WORKER_ENDPOINT_GPU_TYPE=H100\n")
    done = deploy("apply", "--yes", "--write-env")
    assert "LORA_WORKER_ENDPOINT_GPU_TYPE is set, so each job is billed as that GPU" in done.stderr
    assert "LORA_WORKER_ENDPOINT_GPU_TYPE=H100\n" in (folder / ".env").read_text()


def test_nothing_is_changed_where_nobody_can_be_asked(account: Account) -> None:
    deploy(*INIT)
    refused = deploy("apply")
    assert refused.exit_code == 2
    assert "`lora-worker deploy apply --yes` goes on" in refused.stderr
    assert account.writes == []


@pytest.mark.usefixtures("terminal")
def test_destroy_asks_before_each_resource(account: Account) -> None:
    deploy(*INIT, answers="\n" * 9)
    assert deploy("apply", answers="y\n").exit_code == 0
    asked = deploy("destroy", "--with-volumes", answers="y\nn\n")
    assert asked.exit_code == 1
    assert "1 of its workers are at a job" in asked.stderr
    assert "The base models and checkpoints on it are lost" in asked.stderr
    assert len(account.writes) == 2
    assert deploy("destroy", "--with-volumes", answers="y\ny\n").exit_code == 0
    assert account.volumes == {}


def test_a_failure_half_way_says_how_to_go_on(account: Account) -> None:
    deploy(*INIT)
    account.fail("POST serverless", 403)
    failed = deploy("apply", "--yes")
    assert failed.exit_code == 1
    assert "no right to make the endpoint (403)" in failed.stderr
    assert "the same command goes on from there" in failed.stderr
    assert deploy("apply", "--yes").exit_code == 0
    assert len(account.volumes) == len(account.endpoints) == 1


def test_a_missing_file_or_key_is_one_sentence(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = deploy("plan")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "`lora-worker deploy init` writes it" in missing.stderr
    deploy(*INIT)
    monkeypatch.delenv("RUNPOD_API_KEY")
    keyless = deploy("plan")
    assert keyless.exit_code == 2
    assert "GPU_CLUSTER_API_KEY or RUNPOD_API_KEY is missing: RunPod's API key." in keyless.stderr
    monkeypatch.setenv("RUNPOD_API_KEY", "sb_secret_x")
    assert "holds the project's secret key" in deploy("plan").stderr
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setenv("LORA_WORKER_RUNPOD_API_URL", "https://rest.runpod.io/v1")
    assert "REST API v1, which RunPod has shut down" in deploy("plan").stderr
