"""The quick start's commands work as they stand there, from an empty project and account to an adapter on the disk.

All parts are real but the GPU: the daemon is a process, the trainer trains a tiny model on the CPU. The hub serves that
model under the names of the real ones, so no command has to be changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lora_worker.configuration.settings import Settings
from sandbox.demo.run import TRAINER_PACE
from sandbox.hub import LocalHub
from sandbox.runpod import LocalRunPod
from sandbox.sample_text import write_sample_dataset
from sandbox.supabase import LocalSupabase
from sandbox.tiny_model import build_tiny_model
from tests.conftest import SANDBOX
from tests.integration.newcomer.newcomer import Newcomer
from tests.integration.newcomer.page import all_commands, commands_under, variables

pytestmark = pytest.mark.gpu_stack

INSTALLING = ("git ", "lora-worker deploy smoke", "python3 -m venv ", "pip install ", "docker ")
"""These prepare the machine and the image: they need the internet, and `make image-check` tries the last."""
_PACE = {"LORA_WORKER_POLL_SECONDS": "0.5"}


@pytest.fixture(scope="module")
def project() -> Iterator[LocalSupabase]:
    """A project as Supabase makes it: without any table of ours."""
    with LocalSupabase.start(SANDBOX, migrated=False) as project, project.reloads():
        yield project


@pytest.fixture(scope="module")
def runpod() -> Iterator[LocalRunPod]:
    models = dict.fromkeys(Settings.model_fields["base_models"].default, build_tiny_model(SANDBOX / "cache"))
    with LocalHub.start(models) as hub, LocalRunPod.start(env={**hub.env, **TRAINER_PACE}) as runpod:
        yield runpod


@pytest.fixture(scope="module")
def newcomer(
    project: LocalSupabase, runpod: LocalRunPod, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Newcomer]:
    """Somebody who has followed the page to the point where everything is set up."""
    known = {
        "SUPABASE_URL": project.url,
        "SUPABASE_SERVICE_ROLE_KEY": project.secret_key,
        "SUPABASE_PUBLISHABLE_KEY": project.publishable_key,
        "LORA_WORKER_DATABASE_URL": project.database_url,
        "RUNPOD_API_KEY": runpod.api_key,
    }
    newcomer = Newcomer(
        tmp_path_factory.mktemp("newcomer"),
        {name: known[name] for name in variables()},
        {"LORA_WORKER_RUNPOD_API_URL": runpod.rest_url, **_PACE},
    )
    for heading in ("2. The GPUs", "3. The database"):
        for command in commands_under(heading):
            newcomer.type(command)
    yield newcomer
    newcomer.stop_worker()
    for command in commands_under("Take it away again"):
        newcomer.type(command)
    assert resources(runpod) == []


def resources(runpod: LocalRunPod) -> list[str]:
    """The names of what the account has, without the endpoint that is there from the start."""
    with httpx.Client(headers={"authorization": f"Bearer {runpod.api_key}"}, trust_env=False) as http:
        found = [
            one["name"]
            for path, key in (("serverless", "endpoints"), ("network-volumes", "networkVolumes"))
            for one in http.get(f"{runpod.rest_url}/{path}").json()[key]
        ]
    return [name for name in found if name != "local"]


def test_every_command_of_the_page_is_tried_here() -> None:
    tried = ("2. The GPUs", "3. The database", "5. The worker", "A file of your own")
    walked = [command for heading in (*tried, "Take it away again") for command in commands_under(heading)]
    rest = [command for command in all_commands() if command not in walked]
    assert [command for command in rest if not command.startswith(INSTALLING)] == []


def test_a_file_is_queued_watched_and_its_adapter_downloaded(newcomer: Newcomer) -> None:
    (run,) = commands_under("5. The worker")
    newcomer.type(run)
    write_sample_dataset(newcomer.folder / "conversations.jsonl", conversations=4)
    enqueue, watch, download = commands_under("A file of your own")
    found = re.search(r"queued as (\S+)", newcomer.type(enqueue))
    assert found is not None
    assert "completed" in newcomer.type(watch, JOB=found[1])
    newcomer.type(download, JOB=found[1])
    files = newcomer.folder / "my-adapter"
    assert json.loads((files / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert (files / "adapter_model.safetensors").stat().st_size > 10_000
    assert newcomer.stop_worker() == 0


def test_no_secret_is_printed_or_written_beside_the_env_file(newcomer: Newcomer, project: LocalSupabase) -> None:
    (deployment,) = newcomer.folder.glob("deploy.toml")
    for text in (deployment.read_text(), newcomer.log()):
        assert project.secret_key not in text
    assert Path(newcomer.env_file).stat().st_mode & 0o077 == 0
