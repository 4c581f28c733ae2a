"""`deploy inference …`: what it asks the database, what it keeps of the endpoint, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import respx
from click.testing import Result

from lora_worker.commands import deploy_steps
from lora_worker.deployment.fleet import FinishedAdapters
from lora_worker.deployment.releasing import ALIASES_AT
from lora_worker.errors import ServiceUnavailableError
from tests.commands import give_services, run_command
from tests.scripted import FakeQueue, make_services
from tests.unit.worker.deployment.fake_account import Account
from tests.unit.worker.variables import OTHER_NAMES, SETTINGS

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
FILE = f"""name = "trainer"
image = "ghcr.io/me/trainer:1"
base_models = ["{LLAMA}"]
[inference]
[inference.gpu]
pools = ["AMPERE_80"]
"""
VOLUME = '[[volumes]]\nname = "models"\nsize_gb = 50\ndata_center = "EU-RO-1"\n'


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a deployment's file, and RunPod's key alone."""
    monkeypatch.chdir(tmp_path)
    for name in (*SETTINGS, *OTHER_NAMES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_SECRETKEY123")
    (tmp_path / "deploy.toml").write_text(FILE + VOLUME)
    return tmp_path


@pytest.fixture
def account() -> Iterator[Account]:
    account = Account()
    with respx.mock(base_url="https://api.runpod.io", assert_all_called=False) as api:
        api.route().mock(side_effect=account)
        yield account


class _Queue(FakeQueue):
    def __init__(self, *fleet: FinishedAdapters, error: Exception | None = None) -> None:
        super().__init__()
        self._fleet, self._error = list(fleet), error

    async def finished_adapters(self) -> list[FinishedAdapters]:
        if self._error:
            raise self._error
        return self._fleet


def with_database(monkeypatch: pytest.MonkeyPatch, queue: _Queue) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    give_services(monkeypatch, make_services(queue=queue))


def inference(*arguments: str) -> Result:
    return run_command("deploy", "inference", *arguments)


def answer_of(*arguments: str) -> Any:
    done = inference(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def variables(account: Account) -> dict[str, str]:
    (endpoint,) = account.endpoints.values()
    found: dict[str, str] = endpoint["env"]
    return found


def test_ranks_and_numbers_come_from_the_database(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    with_database(monkeypatch, _Queue(FinishedAdapters(base_model=LLAMA, rank=64, adapters=6)))
    planned = answer_of("plan")
    adapters = planned["adapters"]
    assert [adapters[key] for key in ("finished", "max_lora_rank", "max_loras", "max_cpu_loras")] == [6, 64, 8, 8]
    assert planned["notes"] == [planned["notes"][0]]
    assert "run `lora-worker deploy prefetch` before" in planned["notes"][0]
    shown = inference("plan").stdout
    assert f"6 finished adapters of {LLAMA}; ranks up to 64, 8 in a batch, 8 in the machine's memory" in shown
    assert f"{adapters['fit']} adapters of 369 MB fit into a GPU's 80 GB, beside 16.1 GB of weights" in shown
    assert account.writes == []


def test_a_database_that_does_not_answer_lowers_no_rank(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ServiceUnavailableError("Supabase's database", "the database is not reachable")
    with_database(monkeypatch, _Queue(error=error))
    refused = inference("apply", "--yes")
    assert refused.exit_code == 1
    assert "the database is not reachable: which adapters there are is not known. Write max_lora_rank" in refused.stderr
    path = Path("deploy.toml")
    path.write_text(path.read_text().replace("[inference]\n", "[inference]\nmax_lora_rank = 32\nmax_loras = 4\n"))
    assert inference("apply", "--yes").exit_code == 0
    assert variables(account)["MAX_LORA_RANK"] == "32"


def test_a_missing_setting_lowers_no_rank(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    with_database(monkeypatch, _Queue(FinishedAdapters(base_model=LLAMA, rank=64, adapters=6)))
    assert inference("apply", "--yes").exit_code == 0
    began = len(account.writes)
    monkeypatch.delenv("SUPABASE_SERVICE_ROLE_KEY")
    refused = inference("apply", "--yes")
    assert (refused.exit_code, len(account.writes)) == (1, began)
    assert "SUPABASE_SERVICE_ROLE_KEY" in refused.stderr
    assert "which adapters there are is not known. Write max_lora_rank" in refused.stderr
    assert variables(account)["MAX_LORA_RANK"] == "64"
    path = Path("deploy.toml")
    path.write_text(path.read_text().replace("[inference]\n", '[inference]\nmerged_model = "org/bot"\n'))
    assert inference("apply", "--yes").exit_code == 0
    assert variables(account)["MODEL_NAME"] == "org/bot"


def test_an_alias_that_moves_during_an_apply_is_kept(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    with_database(monkeypatch, _Queue())
    assert inference("apply", "--yes").exit_code == 0
    path = Path("deploy.toml")
    path.write_text(path.read_text().replace("[inference]\n", "[inference]\nmax_model_len = 4096\n"))

    def move_an_alias(*_: Any) -> None:
        (key,) = account.endpoints
        account.change("serverless", key, env={**variables(account), ALIASES_AT: "noon"})

    monkeypatch.setattr(deploy_steps, "confirm", move_an_alias)
    assert inference("apply").exit_code == 0
    assert (variables(account)["MAX_MODEL_LEN"], variables(account)[ALIASES_AT]) == ("4096", "noon")


def test_apply_asks_and_nobody_to_ask_changes_nothing(account: Account) -> None:
    refused = inference("apply")
    assert (refused.exit_code, account.writes) == (2, [])
    assert "`lora-worker deploy inference apply --yes` goes on without asking" in refused.stderr


def test_destroy_needs_neither_database_nor_catalog(account: Account, folder: Path) -> None:
    (folder / "deploy.toml").write_text(FILE.replace(LLAMA, "Qwen/Qwen3-Next-80B-A3B-Instruct") + VOLUME)
    account.add("serverless", name="trainer-inference")
    account.add("serverless", name="trainer")
    assert answer_of("destroy", "--yes")["deleted"] == 1
    assert [one["name"] for one in account.endpoints.values()] == ["trainer"]


def test_destroy_does_not_claim_that_the_trainers_endpoint_is_gone(account: Account, folder: Path) -> None:
    (folder / "deploy.toml").write_text(FILE)
    account.add("serverless", name="trainer-inference")
    account.add("serverless", name="trainer")
    told = inference("destroy", "--yes").stdout
    assert "the trainer's endpoint was not touched" in told
    assert "of the deployment" not in told


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        (FILE.partition("[inference]")[0], ("plan",), "deploy.toml has no table [inference]"),
        (FILE + VOLUME, ("modules",), "adapters are found by name: none has to be listed"),
        (FILE.replace("[inference]\n", '[inference]\nmerged_model = "org/bot"\n'), ("modules",), "a merged export"),
        (FILE, ("modules", "--add", "bot=https://x.co/a?token=s3cret", "--yes"), "is an address, and vLLM downloads"),
        (FILE, ("modules", "--add", "bot=org/bot"), "deploy inference modules --yes` goes on without asking"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_call(
    account: Account, folder: Path, text: str, arguments: tuple[str, ...], sentence: str
) -> None:
    (folder / "deploy.toml").write_text(text)
    refused = inference(*arguments)
    assert (refused.exit_code, account.requests) == (2, [])
    assert sentence in refused.stderr
    assert "s3cret" not in refused.output


def test_modules_of_an_endpoint_that_is_not_there_are_refused(account: Account, folder: Path) -> None:
    (folder / "deploy.toml").write_text(FILE)
    refused = inference("modules")
    assert refused.exit_code == 1
    assert "no endpoint named trainer-inference: `lora-worker deploy inference apply` makes it" in refused.stderr
    account.add("serverless", name="trainer-inference", env={"LORA_MODULES": "bot=org/bot"})
    assert "bot: org/bot" in inference("modules").stdout
    assert account.writes == []
