"""Adapters that worker-vllm loads at its start, where no volume is shared with the trainer: variables of the endpoint.

vLLM's `--lora-modules` takes each adapter as an argument of its own, `{"name": …, "path": …}`, and refuses a JSON list
(0.33.0, `entrypoints/common/cli_args.py`, `LoRAParserAction`; the same in every release that was looked at).
worker-vllm makes one argument of the whole of `LORA_MODULES` (v2.25.2, `src/args_builder.py`), so that it holds one
adapter, whatever its documentation shows. Two and more go into `VLLM_EXTRA_ARGS`, which worker-vllm splits as a shell
does and puts behind the rest.

A path is a folder of the image or the volume, from the root, or a repository of the hub, `organisation/model`
(`lora/utils.py`, `get_adapter_absolute_path`). Nothing else is one: vLLM downloads from no URL, so an adapter can't be
named by a signed address of the storage, which would expire, too.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from lora_worker.errors import ArgumentError, DeploymentError

LORA_MODULES, EXTRA_ARGUMENTS = "LORA_MODULES", "VLLM_EXTRA_ARGS"

MAX_MODULES = 64
"""Every worker loads all of them before its first answer, and one that fails to load ends its start."""

_OPTION = "--lora-modules"
_MAX_CHARACTERS = 50_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,149}", re.ASCII)
_FOLDER = re.compile(r"(?:/[\w.-]+)+", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,99}/[A-Za-z0-9][\w.-]{0,99}", re.ASCII)

Modules = Mapping[str, str]
"""Paths by the name under which an adapter is called."""


def parse_module(text: str) -> tuple[str, str]:
    """Read `NAME=PATH`.

    Raises:
        ArgumentError: the name or the path is none that vLLM could load.
    """
    name, equals, path = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise ArgumentError("--add takes NAME=PATH, with a name of letters, digits and any of . _ : -")
    if re.match(r"[a-z][a-z0-9+.-]*:", path, re.IGNORECASE):
        raise ArgumentError(
            f"the path of {name} is an address, and vLLM downloads an adapter from none: name a repository of the hub "
            "(organisation/model), or a folder of the image or the volume"
        )
    if ".." in path or not (_FOLDER.fullmatch(path) or _REPOSITORY.fullmatch(path)):
        raise ArgumentError(
            f"the path of {name} is neither a folder from the root, such as /runpod-volume/adapters/bot, nor a "
            "repository of the hub, organisation/model"
        )
    return name, path


def changed_modules(modules: Modules, add: Modules, remove: frozenset[str]) -> dict[str, str]:
    """Return the adapters with some more and without others. What is added takes the place of one of its name.

    Raises:
        ArgumentError: one that shall go is not there.
        DeploymentError: there would be too many.
    """
    missing = sorted(remove - set(modules))
    if missing:
        raise ArgumentError(f"the endpoint has no adapter {missing[0][:150]}: it has {', '.join(modules) or 'none'}")
    changed = {**{name: path for name, path in modules.items() if name not in remove}, **add}
    if len(changed) > MAX_MODULES:
        raise DeploymentError(
            f"an endpoint gets {MAX_MODULES} adapters at most, since each worker loads all of them before it answers: "
            "remove some, or give it a volume, where adapters are found by name"
        )
    return changed


def read_modules(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the adapters that an endpoint's variables name.

    Raises:
        DeploymentError: they are written in a way that is not read here, or that vLLM does not take.
    """
    _, several = _split(variables)
    single = variables.get(LORA_MODULES, "")
    # The later option counts for vLLM, and VLLM_EXTRA_ARGS comes last.
    return dict(map(_read_one, several or ([single] if single.strip() else [])))


def with_modules(variables: Mapping[str, str], modules: Modules) -> dict[str, str]:
    """Return the variables of an endpoint with these adapters instead of those that they name. The rest stays.

    Raises:
        DeploymentError: as `read_modules`.
    """
    others, _ = _split(variables)
    kept = {name: value for name, value in variables.items() if name not in {LORA_MODULES, EXTRA_ARGUMENTS}}
    texts = [json.dumps({"name": name, "path": path}, separators=(",", ":")) for name, path in modules.items()]
    arguments = [*others, _OPTION, *texts] if len(texts) > 1 else others
    if len(texts) == 1:
        kept[LORA_MODULES] = texts[0]
    if arguments:
        kept[EXTRA_ARGUMENTS] = shlex.join(arguments)
    return kept


def _split(variables: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the other arguments of `VLLM_EXTRA_ARGS`, and those of the option for adapters."""
    text = variables.get(EXTRA_ARGUMENTS, "")
    if len(text) > _MAX_CHARACTERS:
        raise _unreadable(EXTRA_ARGUMENTS)
    try:
        arguments = shlex.split(text)
    except ValueError:
        raise _unreadable(EXTRA_ARGUMENTS) from None
    others: list[str] = []
    adapters: list[str] = []
    within = False
    for argument in arguments:
        if argument.startswith(f"{_OPTION}="):
            raise _unreadable(EXTRA_ARGUMENTS)
        if argument.startswith("-"):
            within = argument == _OPTION
            if not within:
                others.append(argument)
        else:
            (adapters if within else others).append(argument)
    return others, adapters


def _read_one(text: str) -> tuple[str, str]:
    """Read an adapter as vLLM does: `name=path`, or a JSON object."""
    if "=" in text and "," not in text:
        name, _, path = text.partition("=")
        return name, path
    try:
        value: Any = json.loads(text[:_MAX_CHARACTERS])
    except (ValueError, RecursionError):
        raise _unreadable(LORA_MODULES) from None
    if isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("path"), str):
        return value["name"], value["path"]
    raise _unreadable(LORA_MODULES)


def _unreadable(name: str) -> DeploymentError:
    return DeploymentError(
        f"the endpoint's variable {name} is written in a way that vLLM does not take, or that can't be kept here: "
        "correct it or take it out in RunPod's console"
    )
