"""The launchers by name, and the worker's settings with those of the launcher that they choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

import httpx
from pydantic_settings import BaseSettings

from lora_worker.configuration.environment import DATABASE_VARIABLES, refuse_misspelt, variable_names
from lora_worker.configuration.settings import (
    DEFAULT_LAUNCHER,
    AnySettings,
    Settings,
    read_settings,
    unconnected_settings,
    variables_of,
)
from lora_worker.errors import SettingsError
from lora_worker.launchers import gpu_server, runpod, sagemaker, vertex
from lora_worker.launchers.base import Launcher
from lora_worker.launchers.gpu_server import GpuServerLauncher
from lora_worker.launchers.gpu_server_settings import GpuServerSettings
from lora_worker.launchers.runpod import RunPodLauncher
from lora_worker.launchers.runpod_settings import RunPodAccount, RunPodSettings
from lora_worker.launchers.sagemaker import SageMakerLauncher
from lora_worker.launchers.sagemaker_settings import SageMakerSettings
from lora_worker.launchers.vertex import VertexLauncher
from lora_worker.launchers.vertex_settings import VertexSettings


@dataclass(frozen=True, slots=True)
class LauncherKind(Generic[AnySettings]):
    """How a launcher of one kind is made: from which settings, and with how many connections at the same time."""

    settings: type[AnySettings]
    open: Callable[[AnySettings, httpx.AsyncClient], Launcher]
    most_connections: Callable[[AnySettings], int]


LAUNCHERS: Mapping[str, LauncherKind[Any]] = {
    RunPodLauncher.name: LauncherKind(RunPodSettings, RunPodLauncher.open, runpod.most_connections),
    GpuServerLauncher.name: LauncherKind(GpuServerSettings, GpuServerLauncher.open, gpu_server.most_connections),
    VertexLauncher.name: LauncherKind(VertexSettings, VertexLauncher.open, vertex.most_connections),
    SageMakerLauncher.name: LauncherKind(SageMakerSettings, SageMakerLauncher.open, sagemaker.most_connections),
}
"""By the name that `LORA_WORKER_LAUNCHER` chooses, which is stored with each launch."""


_WORKER_PREFIXES = ("LORA_WORKER_", "SUPABASE_", "NEXT_PUBLIC_SUPABASE_", "GPU_CLUSTER_")
"""No trainer reads a variable whose name begins so; keys that are no setting may, such as a database's password."""
_CLOUD_KEYS = frozenset(
    {"GOOGLE_APPLICATION_CREDENTIALS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
)
"""What the clouds' own libraries read, with which the worker launches."""


class _Choice(BaseSettings):
    """Which launcher is set, before its settings are read."""

    model_config = Settings.model_config

    launcher: str = DEFAULT_LAUNCHER


def known_variables() -> set[str]:
    """The variables of all settings, whichever launcher is chosen."""
    # Another launcher's settings are known here, too: they stay where they are while somebody tries out this one.
    return set().union(*(variables_of(kind.settings) for kind in LAUNCHERS.values()))


def hidden_from_trainers(names: Iterable[str]) -> set[str]:
    """Of these variables, those that no trainer's process on the worker's machine may see: the worker's, and its keys.

    A trainer loads files of a base model that others wrote. What it reads itself stays: `HF_TOKEN`, `RUNPOD_POD_ID`.
    """
    hidden = {*known_variables(), *DATABASE_VARIABLES, *_CLOUD_KEYS}
    return {name for name in names if name in hidden or name.startswith(_WORKER_PREFIXES)}


def _checked_names() -> set[str]:
    """The variables that are set; a misspelt one is refused."""
    names = variable_names()
    refuse_misspelt(names, known_variables())
    return names


def load_runpod_account() -> RunPodAccount:
    """Load what is needed to see and change what the account has at RunPod; no setting of Supabase has to be there.

    Raises:
        SettingsError: the text names each variable that is missing, wrong or misspelt, but never its value.
    """
    names = _checked_names()
    return read_settings(RunPodAccount, names)


def load_settings() -> Settings:
    """Load the settings from the environment and `.env`, with those of the launcher that they name.

    Raises:
        SettingsError: the text names each variable that is missing, wrong or misspelt, but never its value.
    """
    names = _checked_names()
    kind = LAUNCHERS.get(_Choice().launcher)
    if kind is None:
        raise SettingsError(f"LORA_WORKER_LAUNCHER: is no launcher; choose one of {', '.join(LAUNCHERS)}.")
    loaded: Settings = read_settings(kind.settings, names)
    return loaded


def load_unconnected_settings() -> Settings:
    """Load the settings of a command that calls no service, and so needs no address and no key.

    Raises:
        SettingsError: the text names each variable that is wrong or misspelt, but never its value.
    """
    names = _checked_names()
    return unconnected_settings(names)
