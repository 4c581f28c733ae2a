"""Writes a commented `deploy.toml`: every key, its meaning as the specification describes it, and its value."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lora_worker.deployment.file import parse_specification
from lora_worker.deployment.specification import Specification
from lora_worker.deployment.tables import Gpu, Volume, Workers

_COLUMNS = 100
_HEAD = """\
What `lora-worker deploy` makes at RunPod and keeps as it is written here:

    lora-worker deploy plan       shows what would change, and what it costs
    lora-worker deploy apply      makes it so
    lora-worker deploy destroy    takes it away

A key that is commented out has the value that is shown. No secret belongs into this file."""
_TABLES: tuple[tuple[str, type[BaseModel]], ...] = (("gpu", Gpu), ("workers", Workers))


def render_specification(values: Mapping[str, Any], path: Path) -> str:
    """Return the text of a commented file with these values, by the keys of `Specification`; the rest has defaults.

    Raises:
        DeploymentFileError: a value is wrong; `path` is for the sentence.
    """
    text = "\n".join(_lines(values)) + "\n"
    parse_specification(text, path)
    return text


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    yield from _comment(_HEAD)
    tables = {"env", "volumes", "inference", *(name for name, _ in _TABLES)}
    for name, field in Specification.model_fields.items():
        if name not in tables:
            yield from _key(name, field, values)
    for name, model in _TABLES:
        yield from ("", *_comment(_described(Specification.model_fields[name])), f"[{name}]")
        for key, field in model.model_fields.items():
            yield from _key(key, field, values.get(name, {}))
    yield from ("", *_comment(_described(Specification.model_fields["env"])), "[env]")
    yield from (f"{name} = {_toml(value)}" for name, value in values.get("env", {}).items())
    yield from _volumes(values.get("volumes", ()))
    about = f"{_described(Specification.model_fields['inference'])} docs/deploying.md lists its keys."
    yield from ("", *_comment(about), "[inference]" if "inference" in values else "# [inference]")


def _volumes(volumes: Any) -> Iterator[str]:
    yield from ("", *_comment(_described(Specification.model_fields["volumes"])))
    for volume in volumes:
        yield "[[volumes]]"
        for key, field in Volume.model_fields.items():
            yield from _key(key, field, volume)
    if not volumes:
        yield from _comment('[[volumes]]\nname = "lora-models"\nsize_gb = 100\ndata_center = "EU-RO-1"')


def _key(name: str, field: FieldInfo, values: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", *_comment(_described(field)))
    if name in values:
        yield f"{name} = {_toml(values[name])}"
        return
    default = field.default
    shown = "..." if default is PydanticUndefined else '""' if default is None else _toml(default)
    yield f"# {name} = {shown}"


def _described(field: FieldInfo) -> str:
    return f"{field.description}."


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.split("\n"):
        indent = " " * (len(paragraph) - len(paragraph.lstrip()))
        for line in textwrap.wrap(paragraph, _COLUMNS - 2, subsequent_indent=indent) or [""]:
            yield f"# {line}".rstrip()


def _toml(value: Any) -> str:
    """Write a value as TOML: its texts are escaped as those of JSON, and its lists are written as there."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
