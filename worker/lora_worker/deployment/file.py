"""Reads `deploy.toml`, and explains each fault in one sentence with its line and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError

from lora_contract.names import nearest
from lora_contract.words import fault_words
from lora_worker.deployment.specification import Specification
from lora_worker.errors import DeploymentFileError

_MAX_BYTES = 200_000
_MAX_SENTENCES = 5
_HEADER = re.compile(r"\s*\[{1,2}\s*([^\[\]#]+?)\s*\]{1,2}\s*(?:#.*)?")
_KEY = re.compile(r"\s*([\w-]+(?:\s*\.\s*[\w-]+)*)\s*=")


def read_specification(path: Path) -> Specification:
    """Read and check a deployment's file.

    Raises:
        DeploymentFileError: the file can't be read or is wrong; the text names lines and keys, and no value.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise DeploymentFileError(f"{path} is not there: `lora-worker deploy init` writes it.") from None
    except OSError as error:
        raise DeploymentFileError(f"{path} can't be read ({error.strerror or type(error).__name__}).") from None
    if len(content) > _MAX_BYTES:
        raise DeploymentFileError(f"{path} is larger than {_MAX_BYTES // 1000} kB: it can't be a deployment's file.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DeploymentFileError(f"{path}, line {line}: is not UTF-8; save the file as UTF-8.") from None
    return parse_specification(text, path)


def parse_specification(text: str, path: Path) -> Specification:
    """Read a specification from the text of a file; `path` is for the sentences.

    Raises:
        DeploymentFileError: as above.
    """
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DeploymentFileError(f"{path} is not TOML: {str(error)[:200]}.") from None
    try:
        return Specification.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        told = problems[:_MAX_SENTENCES]
        sentences = [_explain(problem["loc"], problem["type"], problem["msg"], text, path) for problem in told]
        more = len(problems) - len(told)
        shown = [*sentences, *([f"And {more} more."] if more > 0 else [])]
        raise DeploymentFileError(" ".join(shown)) from None


def _explain(loc: Sequence[int | str], kind: str, message: str, text: str, path: Path) -> str:
    line = line_of(text, loc)
    where = f"{path}, line {line}" if line else str(path)
    key = _written(loc)
    if kind == "extra_forbidden":
        near = nearest(str(loc[-1]), _keys_beside(loc))
        meant = f"{_written([*loc[:-1], near])} may be meant" if near else "docs/deploying.md lists them all"
        return f"{where}: {key} is no key of a deployment: {meant}; rename it, or take it away."
    if kind == "missing":
        return f"{where}: {key} is missing: {_description(loc)}."
    return f"{where}: {key}{': ' if key else ''}{fault_words(kind, message)}."


def _written(loc: Sequence[int | str]) -> str:
    """Write a key as in `volumes[2].size_gb`; the number counts from 1."""
    written = ""
    for part in loc:
        written += f"[{part + 1}]" if isinstance(part, int) else f".{part[:60]}" if written else part[:60]
    return written


def _table_at(loc: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model of the table that the parts of a place lead to; None where there is no table."""
    table: type[BaseModel] = Specification
    for part in loc:
        if isinstance(part, int):
            continue
        field = table.model_fields.get(part)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return None
        table = inner[0]
    return table


def _keys_beside(loc: Sequence[int | str]) -> list[str]:
    table = _table_at(loc[:-1])
    return list(table.model_fields) if table else []


def _description(loc: Sequence[int | str]) -> str:
    table = _table_at(loc[:-1])
    field = table.model_fields.get(str(loc[-1])) if table else None
    return (field.description if field else None) or "write it into the file"


def line_of(text: str, loc: Sequence[int | str]) -> int | None:
    """Find the line of a key in a TOML text, counted from 1: that of the key, or else of the table that it is in.

    A key in quotes is not found; then it is the line of its table. None: neither is found.
    """
    names = [part for part in loc if isinstance(part, str)]
    wanted = loc[1] if len(loc) > 1 and isinstance(loc[1], int) else 0
    table: list[str] | None = []
    seen, depth, found = 0, 0, None
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.fullmatch(line)
        if header:
            table = _parts(header[1])
            if table == names[:1]:
                # Of an array's tables only the one is looked into that the place names.
                table, seen = (table if seen == wanted else None), seen + 1
            path = table
        else:
            key = _KEY.match(line)
            path = [*table, *_parts(key[1])] if key and table is not None else None
        if path and len(path) > depth and path == names[: len(path)]:
            depth, found = len(path), number
    return found


def _parts(name: str) -> list[str]:
    return [part.strip() for part in name.split(".")]
