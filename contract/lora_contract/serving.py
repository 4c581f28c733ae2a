"""The folder from which vLLM serves adapters by name, and whose adapter lies where.

    <volume>/lora-adapters/<name>/adapter_config.json, adapter_model.safetensors    what vLLM loads
    <volume>/lora-adapters/<name>/lora-worker.json                                  `Marker`: whose it is
    <volume>/lora-adapters/.<anything>                                              being written, or replaced

vLLM's filesystem resolver takes the model's name of a request for a folder's name below
`VLLM_LORA_RESOLVER_CACHE_DIR`, and serves it where `base_model_name_or_path` of its configuration equals the name by
which the server was started (`--model`). It looks at the first request for a name, and then never again: a server that
runs goes on with what it has loaded (vLLM 0.33.0, `plugins/lora_resolvers/filesystem_resolver.py`,
`entrypoints/openai/models/serving.py`). docs/serving.md has the rules for people.
"""

from __future__ import annotations

import re
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lora_contract.bounds import Instant, Label, Name

SERVING_FOLDER = "lora-adapters"
"""The folder on the network volume; vLLM's `VLLM_LORA_RESOLVER_CACHE_DIR` names it."""
MARKER_NAME = "lora-worker.json"
MAX_MARKER_BYTES = 10_000
MAX_NAME_CHARACTERS = 150

_PREFIX = "adapter-"
_SHORT = 8
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_SERVED = re.compile(r"adapter-[A-Za-z0-9_-]{1,100}", re.ASCII)
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}:[a-z][a-z0-9-]{0,19}", re.ASCII)


def serving_name(job_id: str | UUID) -> str:
    """The name by which a job's adapter is called: `adapter-` and the first eight characters of the job's id.

    Raises:
        ValueError: the id can't be part of a folder's name.
    """
    return whole_serving_name(job_id)[: len(_PREFIX) + _SHORT]


def whole_serving_name(job_id: str | UUID) -> str:
    """The name where another job's adapter has the short one already. Raises as `serving_name` does."""
    if not _JOB_ID.fullmatch(str(job_id)):
        raise ValueError("a job's id consists of letters, digits, '-' and '_'")
    return f"{_PREFIX}{job_id}"


def is_name_of(name: str, job_id: str | UUID) -> bool:
    """Whether this is one of the two names that the job's adapter may be served by."""
    return name in {serving_name(job_id), whole_serving_name(job_id)}


def _check_name(name: str) -> str:
    if not _SERVED.fullmatch(name):
        raise ValueError("this is no name of an adapter: adapter-<letters, digits, '-' and '_'>")
    return name


def _check_alias(name: str) -> str:
    if not _ALIAS.fullmatch(name):
        raise ValueError(
            "this is no alias: write <letters, digits, '.', '-' and '_'>:<lower-case letters>, as bot:live"
        )
    return name


ServedName = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS), AfterValidator(_check_name)]
"""A folder's name of a job's own adapter: plain, without a slash, never one that leads elsewhere."""
Alias = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS), AfterValidator(_check_alias)]
"""A name such as `bot:live`, which holds a copy of an adapter; its colon keeps it apart from every job's own name."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Serving(_Model):
    """Where the trainer has put the adapter, so that vLLM finds it by its name."""

    name: ServedName
    folder: Label
    """The path as the trainer sees it; on a server the volume may be mounted elsewhere."""


class Marker(_Model):
    """Whose adapter lies in a folder. Nobody else's is ever replaced or removed."""

    job_id: Name
    run_id: Name
    adapter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """That of `adapter_model.safetensors`."""
    alias_of: ServedName | None = None
    """Of an alias' folder: the adapter of which it holds a copy. The ids are that adapter's."""
    removed_at: Instant = None
    """Since when the adapter is removed, and weights that change nothing lie in its place."""
