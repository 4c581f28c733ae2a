"""What a newcomer needs: an empty project, an account, and a hub with the base models.

All parts are real but the GPU: the daemon is a process, the trainer trains a tiny model on the CPU. The hub serves that
model under the names of the real ones, so no command has to be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lora_worker.configuration.settings import Settings
from sandbox.demo.run import TRAINER_PACE
from sandbox.hub import LocalHub
from sandbox.runpod import LocalRunPod
from sandbox.supabase import LocalSupabase
from sandbox.tiny_model import build_tiny_model
from tests.conftest import SANDBOX
from tests.integration.newcomer.newcomer import Newcomer

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
def known(project: LocalSupabase, runpod: LocalRunPod) -> dict[str, str]:
    """What the pages of Supabase and RunPod tell, by the variable that it is for."""
    return {
        "SUPABASE_URL": project.url,
        "SUPABASE_SERVICE_ROLE_KEY": project.secret_key,
        "SUPABASE_PUBLISHABLE_KEY": project.publishable_key,
        "LORA_WORKER_DATABASE_URL": project.database_url,
        "RUNPOD_API_KEY": runpod.api_key,
        "GPU_CLUSTER_API_KEY": runpod.api_key,
    }


@pytest.fixture(scope="module")
def arrival(
    known: dict[str, str], runpod: LocalRunPod, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[list[str]], Newcomer]]:
    """Makes the newcomer, who writes these variables into `.env` at first. The worker is stopped in the end."""
    newcomers = []

    def arrive(variables: list[str]) -> Newcomer:
        newcomer = Newcomer(
            tmp_path_factory.mktemp("newcomer"),
            {name: known[name] for name in variables},
            {"LORA_WORKER_RUNPOD_API_URL": runpod.rest_url, **_PACE},
        )
        newcomers.append(newcomer)
        return newcomer

    yield arrive
    for newcomer in newcomers:
        newcomer.stop_worker()


def resources(runpod: LocalRunPod) -> list[str]:
    """The names of what the account has, without the endpoint that is there from the start."""
    with httpx.Client(headers={"authorization": f"Bearer {runpod.api_key}"}, trust_env=False) as http:
        found = [
            one["name"]
            for path, key in (("serverless", "endpoints"), ("network-volumes", "networkVolumes"))
            for one in http.get(f"{runpod.rest_url}/{path}").json()[key]
        ]
    return [name for name in found if name != "local"]


def holds_secret(path: Path, known: dict[str, str]) -> bool:
    """Tell whether a file holds one of the secrets."""
    secrets = {value for name, value in known.items() if name.endswith("KEY") and "PUBLISHABLE" not in name}
    return any(secret in path.read_text(errors="replace") for secret in secrets)
