"""The variables that the worker needs for a deployment, and how they get into `.env` beside its other lines."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from dotenv.parser import Binding, parse_stream

from lora_worker.configuration.addresses import url_fault
from lora_worker.configuration.environment import ENV_FILE, read_env_text
from lora_worker.deployment.catalog import types_of
from lora_worker.deployment.resources import Endpoint
from lora_worker.deployment.survey import Survey
from lora_worker.deployment.tables import EndpointTable
from lora_worker.errors import DeploymentError, SettingsError
from lora_worker.launchers.runpod.settings import API_URL
from lora_worker.money.pricing import GpuPrice, find_gpu

GPU_TYPE = "LORA_WORKER_ENDPOINT_GPU_TYPE"
"""As what each job is billed, where it is set."""

_OWNER_ONLY = 0o600


def job_url(endpoint: Endpoint) -> str:
    """Return the address at which an endpoint takes jobs, without the operation at its end.

    Raises:
        DeploymentError: RunPod tells an address to which no key may be sent.
    """
    run = endpoint.request_urls.run if endpoint.request_urls else None
    url = run.removesuffix("/run") if run else f"{API_URL}/{endpoint.id}"
    if url_fault(url) or (urlsplit(url).scheme != "https" and urlsplit(url).hostname not in {"127.0.0.1", "localhost"}):
        raise DeploymentError("RunPod tells an address for the endpoint's jobs to which no key can be sent safely")
    return url


def worker_variables(
    specification: EndpointTable, endpoint: Endpoint, survey: Survey, prices: tuple[GpuPrice, ...]
) -> dict[str, str]:
    """Return the variables by which the worker sends its jobs to an endpoint and bills them. None is a secret.

    The GPU type is among them only where all cards of the pools have the same price: with several, a job is billed as
    the one that it asks for.
    """
    wanted = specification.gpu
    variables = {"GPU_CLUSTER_API_URL": job_url(endpoint), "LORA_WORKER_ENDPOINT_GPU_COUNT": str(wanted.count)}
    cards = types_of(survey.gpu_types, wanted.pools, wanted.excluded_types)
    types = {price.type if price else None for price in (find_gpu(prices, gpu.id) for gpu in cards)}
    if len(types) == 1 and (only := types.pop()) is not None:
        variables[GPU_TYPE] = only
    return variables


def merge_variables(text: str, variables: Mapping[str, str]) -> str:
    """Set variables in the text of an `.env` file. Other lines stay as they are, comments and their order, too.

    A variable that is set there already keeps its place; one that is new is added at the end.
    """
    left = dict(variables)
    pieces = []
    for binding in parse_stream(io.StringIO(text)):
        value = None if binding.error or binding.key is None else variables.get(binding.key)
        if value is None:
            pieces.append(binding.original.string)
        else:
            left.pop(str(binding.key), None)
            pieces.append(_with_value(binding, value))
    merged = "".join(pieces)
    if left and merged and not merged.endswith("\n"):
        merged += "\n"
    return merged + "".join(f"{name}={value}\n" for name, value in left.items())


def _with_value(binding: Binding, value: str) -> str:
    # Blank lines and comments before a statement belong to its text.
    statement = binding.original.string
    before = statement[: len(statement) - len(statement.lstrip())]
    export = "export " if statement.lstrip().startswith("export ") else ""
    return f"{before}{export}{binding.key}={value}" + ("\n" if statement.endswith("\n") else "")


def write_variables(variables: Mapping[str, str], path: Path = ENV_FILE) -> bool:
    """Set variables in an `.env` file, which only its owner may read afterwards. Return whether the text changed.

    The file is replaced in one step: nobody reads half of it, and a full disk leaves the former one.

    Raises:
        SettingsError: the file can't be read or written.
    """
    text = read_env_text(path)
    merged = merge_variables(text, variables)
    target = path.resolve()
    try:
        if merged != text:
            _replace(target, merged)
        else:
            target.chmod(_OWNER_ONLY)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError(
            f"{path} can't be written ({reason}): mend its rights, or set the variables yourself."
        ) from None
    return merged != text


def _replace(target: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        # mkstemp makes files that only their owner may read.
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
