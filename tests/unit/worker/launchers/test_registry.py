"""A launcher is chosen by one setting, and only its own settings are required."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from pydantic import Field, SecretStr
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.configuration.settings import Settings
from lora_worker.errors import SettingsError
from lora_worker.launchers.registry import LAUNCHERS, LauncherKind, load_settings
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from lora_worker.services import open_services
from tests.project import ROOT
from tests.scripted import FakeLauncher
from tests.unit.worker.variables import SETTINGS

RUNPODS = ("GPU_CLUSTER_API_URL", "GPU_CLUSTER_API_KEY")


class NeighbourSettings(Settings):
    """What another launcher needs."""

    neighbour_key: SecretStr = Field(description="The neighbour's key")


class Neighbour(FakeLauncher):
    """Another launcher."""

    name = "neighbour"

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key


def opened(settings: NeighbourSettings, http: httpx.AsyncClient) -> Neighbour:
    return Neighbour(settings.neighbour_key.get_secret_value())


@pytest.fixture(autouse=True)
def neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second launcher beside RunPod's."""
    kind = LauncherKind(NeighbourSettings, opened, lambda _: 10)  # type: ignore[arg-type]
    monkeypatch.setitem(LAUNCHERS, "neighbour", kind)  # type: ignore[arg-type]


async def test_runpod_is_the_default_launcher(environment: pytest.MonkeyPatch) -> None:
    async with open_services(load_settings()) as services:
        assert isinstance(services.launcher, RunPodLauncher)
        assert services.launcher.endpoint == SETTINGS["GPU_CLUSTER_API_URL"]


async def test_another_launcher_needs_nothing_of_runpod(environment: pytest.MonkeyPatch) -> None:
    for name in RUNPODS:
        environment.delenv(name)
    environment.setenv("LORA_WORKER_LAUNCHER", "neighbour")
    environment.setenv("LORA_WORKER_NEIGHBOUR_KEY", "secret")
    async with open_services(load_settings()) as services:
        assert isinstance(services.launcher, Neighbour)
        assert services.launcher.key == "secret"


def test_launcher_can_be_chosen_in_the_env_file(environment: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("LORA_WORKER_LAUNCHER=neighbour\nLORA_WORKER_NEIGHBOUR_KEY=secret\n")
    assert isinstance(load_settings(), NeighbourSettings)


def test_missing_settings_of_the_chosen_launcher_are_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", "neighbour")
    environment.delenv("SUPABASE_URL")
    with pytest.raises(SettingsError, match="LORA_WORKER_NEIGHBOUR_KEY is missing: The neighbour's key") as caught:
        load_settings()
    assert "SUPABASE_URL is missing" in str(caught.value)
    assert "GPU_CLUSTER" not in str(caught.value)


def test_settings_of_an_unused_launcher_are_allowed(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", "neighbour")
    environment.setenv("LORA_WORKER_NEIGHBOUR_KEY", "secret")
    environment.setenv("LORA_WORKER_FORMER_ENDPOINTS", "https://other.example/v2/ep")
    assert load_settings().launcher == "neighbour"


def test_limits_of_runpod_bind_no_other_launcher(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", "neighbour")
    environment.setenv("LORA_WORKER_NEIGHBOUR_KEY", "secret")
    environment.setenv("LORA_WORKER_MAX_RUN_SECONDS", "604800")
    assert load_settings().max_run_seconds == 604800


@pytest.mark.parametrize("name", ["modal", "", "RunPod"])
def test_unknown_launcher_is_refused_with_the_known_ones(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", name)
    with pytest.raises(
        SettingsError, match=r"^LORA_WORKER_LAUNCHER: is no launcher; choose one of runpod, gpu-server, .*neighbour\.$"
    ):
        load_settings()


def test_settings_command_lists_those_of_every_launcher(environment: pytest.MonkeyPatch) -> None:
    listed = CliRunner().invoke(app, ["settings", "--json"], catch_exceptions=False).output
    for variable in ("GPU_CLUSTER_API_URL", "LORA_WORKER_NEIGHBOUR_KEY", "LORA_WORKER_LAUNCHER"):
        assert listed.count(f'"{variable}"') == 1


def test_only_the_launchers_know_runpod() -> None:
    """Configuration only recognises a RunPod key or address where it does not belong, and has the default's name."""
    package = ROOT / "worker" / "lora_worker"
    knowing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"runpod|gpu_cluster", path.read_text(), re.IGNORECASE)
    }
    # `deploy` makes endpoints at RunPod and nowhere else, the doctor looks at them there, and `ask` calls one.
    rooms = (
        "launchers/",
        "deployment/",
        "inference/",
        "commands/deploy",
        "commands/cli.py",
        "commands/guided.py",
        "doctor/account.py",
        "doctor/examine.py",
        "doctor/inference.py",
        "doctor/pods.py",
        "inference/",
        "submission/endpoint_export.py",
        "submission/exporting.py",
    )
    elsewhere = {name for name in knowing if not name.startswith(rooms)}
    assert elsewhere == {"configuration/addresses.py", "configuration/keys.py", "configuration/settings.py"}
