"""Checks the environment variables and the file `.env` before pydantic reads the settings from them.

pydantic ignores a file that it can't read, a line that is no setting, and a misspelt name. In each of these cases the
worker would silently use a default instead of the value that the operator set. So they are errors here. The messages
never show a value.
"""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from lora_contract.names import nearest, unread_variables
from lora_worker.errors import SettingsError

ENV_FILE = Path(".env")
ENV_FILE_ENCODING = "utf-8-sig"
"""UTF-8, with or without the byte order mark that some editors write at the beginning."""

_MAX_BYTES = 1 << 20
_OWN = re.compile(r"LORA[_-]?WORK", re.IGNORECASE)
_OF_A_PAGE = re.compile(r"^(NEXT_PUBLIC_|VITE_|NUXT_PUBLIC_|REACT_APP_)")
_BESIDE_SETTINGS = frozenset({"LORA_WORKER_DATABASE_URL"})
"""Variables that are no settings of the daemon: only `lora-worker migrate` reads them."""
DATABASE_VARIABLES = ("LORA_WORKER_DATABASE_URL", "SUPABASE_DB_URL", "DATABASE_URL")
"""The variables that may hold the database's URL, in the environment or in `.env`."""


def variable_names() -> set[str]:
    """Return the names of all variables that are set in the environment or in `.env`.

    Raises:
        SettingsError: `.env` can't be read; the text says where and why.
    """
    return {*os.environ, *_names_of(ENV_FILE)}


def first_value(names: Iterable[str]) -> str | None:
    """Return the value of the first of these variables that is set, in the environment or else in `.env`.

    Raises:
        SettingsError: `.env` can't be read; the text says where and why.
    """
    listed = tuple(names)
    _names_of(ENV_FILE)
    in_file = dotenv_values(stream=io.StringIO(read_env_text(ENV_FILE)))
    for values in (os.environ, in_file):
        for name in listed:
            if value := (values.get(name) or "").strip():
                return value
    return None


def _names_of(path: Path) -> list[str]:
    text = read_env_text(path)
    names = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            # The parser's line number is that of the blank lines before the statement, if there are any.
            blank = len(binding.original.string) - len(binding.original.string.lstrip())
            line = binding.original.line + binding.original.string[:blank].count("\n")
            raise SettingsError(f"{path}, line {line}: is not NAME=value; mend the line, or begin it with #.")
        if binding.key is not None:
            names.append(binding.key)
    return names


def read_env_text(path: Path) -> str:
    """Return the text of an `.env` file with \\n as line ends; empty where there is none.

    Raises:
        SettingsError: the file can't be read, or is no text.
    """
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError(f"{path} can't be read ({reason}): mend its rights, or move it away.") from None
    if len(content) > _MAX_BYTES:
        raise SettingsError(f"{path} is larger than a megabyte: it can't be a file of settings.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SettingsError(f"{path} is in UTF-16: save it as UTF-8.")
    try:
        text = content.decode(ENV_FILE_ENCODING)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}, line {line}: is not UTF-8; save the file as UTF-8.") from None
    if "\x00" in text:
        raise SettingsError(f"{path} holds zero characters: save it as UTF-8.")
    # Line ends as they would be after reading the file in text mode.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def refuse_misspelt(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse variables whose names begin like those of the worker's settings but are none of them.

    Raises:
        SettingsError: the text names each of them, with the most similar setting.
    """
    sentences = unread_variables(
        names, _OWN, {*known, *_BESIDE_SETTINGS}, whose="the worker", otherwise="`lora-worker settings` lists them all"
    )
    if sentences:
        raise SettingsError(" ".join(sentences))


def meant_for(wanted: Iterable[str], names: Iterable[str], known: Iterable[str]) -> str | None:
    """Find a variable that is set, is no setting, and has a name similar to one of the `wanted`; None if none has."""
    of_others = {_OF_A_PAGE.sub("", name.upper()): name for name in names if name.upper() not in known}
    for variable in wanted:
        family = variable.split("_")[0]
        candidates = [name for name in of_others if name.startswith(family)]
        near = nearest(variable, candidates, cutoff=0.7)
        if near:
            return of_others[near]
    return None
