"""The launchers by name, the worker's settings with those of the launchers that they choose, and the places."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import getattr_static
from pathlib import Path
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
    variable_of,
    variables_of,
)
from lora_worker.errors import SettingsError
from lora_worker.launchers.base import Launcher
from lora_worker.launchers.gpu_server import launcher as gpu_server
from lora_worker.launchers.gpu_server.launcher import GpuServerLauncher
from lora_worker.launchers.gpu_server.settings import GpuServerSettings
from lora_worker.launchers.places import DEFAULT_PLACE, Place, is_newer_than_image
from lora_worker.launchers.routing_table import VARIABLE, EndpointEntry, RoutingTable, read_table
from lora_worker.launchers.runpod import launcher as runpod
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from lora_worker.launchers.runpod.settings import RunPodAccount, RunPodSettings
from lora_worker.launchers.runpod_pods import launcher as runpod_pods
from lora_worker.launchers.runpod_pods.launcher import RunPodPodsLauncher
from lora_worker.launchers.runpod_pods.settings import RunPodPodsSettings
from lora_worker.launchers.sagemaker import launcher as sagemaker
from lora_worker.launchers.sagemaker.launcher import SageMakerLauncher
from lora_worker.launchers.sagemaker.settings import SageMakerSettings
from lora_worker.launchers.skypilot import launcher as skypilot
from lora_worker.launchers.skypilot.launcher import SkyPilotLauncher
from lora_worker.launchers.skypilot.settings import SkyPilotSettings
from lora_worker.launchers.vertex import launcher as vertex
from lora_worker.launchers.vertex.launcher import VertexLauncher
from lora_worker.launchers.vertex.settings import VertexSettings


@dataclass(frozen=True, slots=True)
class LauncherKind(Generic[AnySettings]):
    """How a launcher of one kind is made: from which settings, and with how many connections at the same time."""

    settings: type[AnySettings]
    open: Callable[..., Launcher]
    """Takes these settings, the HTTP client and the address of an endpoint; without it, the settings' own endpoint."""
    most_connections: Callable[[AnySettings], int]
    needs_image: bool = True
    """Whether its trainers run in the Dockerfile's image; else the machine's own PyTorch tells what GPUs it can use."""


LAUNCHERS: Mapping[str, LauncherKind[Any]] = {
    RunPodLauncher.name: LauncherKind(RunPodSettings, RunPodLauncher.open, runpod.most_connections),
    GpuServerLauncher.name: LauncherKind(
        GpuServerSettings, GpuServerLauncher.open, gpu_server.most_connections, needs_image=False
    ),
    SkyPilotLauncher.name: LauncherKind(SkyPilotSettings, SkyPilotLauncher.open, skypilot.most_connections),
    RunPodPodsLauncher.name: LauncherKind(RunPodPodsSettings, RunPodPodsLauncher.open, runpod_pods.most_connections),
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
    """Which launchers are set, before their settings are read. Any text is right here, since `Settings` checks all."""

    model_config = Settings.model_config

    launcher: str = DEFAULT_LAUNCHER
    routes: str = ""


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
    """Load the settings from the environment and `.env`, with those of all launchers that they name.

    Raises:
        SettingsError: the text names each variable that is missing, wrong or misspelt, but never its value; or what is
            wrong in the routing table.
    """
    names = _checked_names()
    choice = _Choice()
    if choice.launcher not in LAUNCHERS:
        raise SettingsError(f"LORA_WORKER_LAUNCHER: is no launcher; choose one of {', '.join(LAUNCHERS)}.")
    routes = Path(choice.routes) if choice.routes else None
    table = read_table(routes) if routes else None
    if table is None:
        alone: Settings = read_settings(settings_class([choice.launcher]), names)
        alone.keep_routing_table(None)
        return alone
    asked_by: dict[str, str] = {}
    for name in table.endpoints:
        asked_by.setdefault(_launcher_of(table, name, choice.launcher, routes), name)
    try:
        loaded: Settings = read_settings(settings_class(asked_by), names)
    except SettingsError as error:
        if " is missing" not in str(error):
            raise
        asking = ", ".join(f"[endpoints.{name}] asks for {launcher}" for launcher, name in asked_by.items())
        raise SettingsError(f"{error} In {routes} {asking}: each launcher needs all its settings.") from None
    loaded.keep_routing_table(table)
    return loaded


def _launcher_of(table: RoutingTable, name: str, default: str, routes: Path | None) -> str:
    """The launcher of an endpoint of the routing table.

    Raises:
        SettingsError: there is no such launcher.
    """
    launcher = table.endpoints[name].launcher or default
    if launcher not in LAUNCHERS:
        raise _wrong(routes, name, f"launcher: {launcher[:50]!r} is none; choose one of {', '.join(LAUNCHERS)}")
    return launcher


def _wrong(routes: Path | None, name: str, text: str) -> SettingsError:
    return SettingsError(f"{VARIABLE}: {routes}, [endpoints.{name}]: {text}.")


def settings_class(launchers: Iterable[str]) -> type[Settings]:
    """The class of settings with those of each of these launchers.

    Raises:
        TypeError: two classes have each a validator of their own under one name, of which only one would count.
    """
    classes: list[type[Settings]] = list(dict.fromkeys(LAUNCHERS[name].settings for name in launchers))
    if len(classes) == 1:
        return classes[0]
    shared = set(dir(Settings))
    for place, one in enumerate(classes):
        for other in classes[place + 1 :]:
            twice = {
                name for name in set(dir(one)) & set(dir(other)) - shared
                if not name.startswith("__") and getattr_static(one, name) is not getattr_static(other, name)
            }  # fmt: skip
            if twice:
                raise TypeError(f"{one.__name__} and {other.__name__} both define {', '.join(sorted(twice))}")
    return type(
        "RoutedSettings", tuple(classes), {"__doc__": "The settings of several launchers.", "__module__": __name__}
    )


def most_connections(settings: Settings) -> int:
    """How many calls to launchers may be under way at the same time."""
    return sum(LAUNCHERS[launcher].most_connections(settings) for launcher, _, _ in _entries(settings))


def read_routes(settings: Settings) -> RoutingTable | None:
    """The routing table of the settings, which is read once for them; None where they name none.

    Raises:
        SettingsError: it can't be read, or something in it is wrong.
    """
    if settings.routes and settings.routing_table is None:
        settings.keep_routing_table(read_table(settings.routes))
    found: RoutingTable | None = settings.routing_table
    return found


def _entries(settings: Settings) -> list[tuple[str, str, EndpointEntry]]:
    """Launcher, name and entry of each endpoint; without a table that of the settings."""
    table = read_routes(settings)
    if table is None:
        return [(settings.launcher, DEFAULT_PLACE, EndpointEntry())]
    return [
        (_launcher_of(table, name, settings.launcher, settings.routes), name, entry)
        for name, entry in table.endpoints.items()
    ]


def open_places(settings: Settings, http: httpx.AsyncClient) -> tuple[Place, ...]:
    """The places where runs are launched, the default one first, each with a launcher of its own.

    Raises:
        SettingsError: an endpoint can't be used so, or two are the same one.
    """
    places: list[Place] = []
    for launcher, name, entry in _entries(settings):
        gpu_type = entry.gpu_type or settings.endpoint_gpu_type
        gpu_count = entry.gpu_count or settings.endpoint_gpu_count
        # What a launcher needs to know of its GPUs it reads from the settings.
        own = settings.model_copy(update={"endpoint_gpu_type": gpu_type, "endpoint_gpu_count": gpu_count})
        try:
            opened = LAUNCHERS[launcher].open(own, http, *([entry.endpoint] if entry.endpoint else []))
        except (SettingsError, ValueError) as error:
            raise _unusable(settings, name, error) from None
        takes_newer = settings.image_for_newer_gpus or not LAUNCHERS[launcher].needs_image
        if not takes_newer and is_newer_than_image(gpu_type):
            raise _too_new(settings, name, gpu_type)
        same = next((place.name for place in places if place.endpoint == opened.endpoint), None)
        if same is not None:
            raise _wrong(settings.routes, name, f"its endpoint is that of [endpoints.{same}], too; give each its own")
        serves = not places if entry.serves is None else entry.serves
        places.append(Place(name, opened, gpu_type, gpu_count, entry.price_per_hour, entry.slots, serves, takes_newer))
    return tuple(places)


def _too_new(settings: Settings, name: str, gpu_type: str | None) -> SettingsError:
    fault = (
        f"the Dockerfile's image has no kernels for a {gpu_type!s:.50}: build one with CUDA 12.8 or newer, and set "
        "LORA_WORKER_IMAGE_FOR_NEWER_GPUS=true"
    )
    if settings.routes is None:
        return SettingsError(f"LORA_WORKER_ENDPOINT_GPU_TYPE: {fault}.")
    return _wrong(settings.routes, name, fault)


def _unusable(settings: Settings, name: str, error: SettingsError | ValueError) -> SettingsError:
    """Why an endpoint can't be opened, with where that was set: its table, or else the variable."""
    text = str(error).rstrip(".")
    if settings.routes is not None:
        return _wrong(settings.routes, name, text)
    if re.match("[A-Z]+_[A-Z_]+", text):  # the launcher knows which
        return SettingsError(f"{text}.")
    variable = variable_of(getattr(error, "setting", None) or "launcher", type(settings))
    return SettingsError(f"{variable}: {text}.")


def load_unconnected_settings() -> Settings:
    """Load the settings of a command that calls no service, and so needs no address and no key.

    Raises:
        SettingsError: the text names each variable that is wrong or misspelt, but never its value.
    """
    names = _checked_names()
    return unconnected_settings(names)
