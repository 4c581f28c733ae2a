"""The variables that a worker is started with: those of its environment, and those of the file `.env`.

pydantic reads both, and is silent where a file can't be read, a line is no setting, or a name is misspelt. Each of
these would leave a default in force that nobody chose, so they are refused here. No value is ever shown.
"""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dotenv.parser import parse_stream

from lora_contract.names import nearest, unread_variables
from lora_worker.errors import SettingsError

ENV_FILE = Path(".env")
ENV_FILE_ENCODING = "utf-8-sig"
"""With or without the mark that some editors put in front."""

_MAX_BYTES = 1 << 20
_OWN = re.compile(r"LORA[_-]?WORK", re.IGNORECASE)
_OF_A_PAGE = re.compile(r"^(NEXT_PUBLIC_|VITE_|NUXT_PUBLIC_|REACT_APP_)")
_BESIDE_SETTINGS = frozenset({"LORA_WORKER_DATABASE_URL"})
"""Read by `lora-worker migrate` alone."""


def variable_names() -> set[str]:
    """The names of all variables that are set, in the environment or in `.env`.

    Raises:
        SettingsError: `.env` can't be read; says where and why.
    """
    return {*os.environ, *_names_of(ENV_FILE)}


def _names_of(path: Path) -> list[str]:
    text = _read(path)
    names = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            # The parser counts a statement's blank lines before it, too.
            blank = len(binding.original.string) - len(binding.original.string.lstrip())
            line = binding.original.line + binding.original.string[:blank].count("\n")
            raise SettingsError(f"{path}, line {line}: is not NAME=value; mend the line, or begin it with #.")
        if binding.key is not None:
            names.append(binding.key)
    return names


def _read(path: Path) -> str:
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
    # As the file would be read in text mode.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def refuse_misspelt(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse variables that are named like the worker's and are none.

    Raises:
        SettingsError: names each, with the setting that is nearest to it.
    """
    told = unread_variables(
        names, _OWN, {*known, *_BESIDE_SETTINGS}, whose="the worker", otherwise="`lora-worker settings` lists them all"
    )
    if told:
        raise SettingsError(" ".join(told))


def meant_for(wanted: Iterable[str], names: Iterable[str], known: Iterable[str]) -> str | None:
    """The variable that is set, is none of the settings, and is named nearest to a wanted one; None without one."""
    of_others = {_OF_A_PAGE.sub("", name.upper()): name for name in names if name.upper() not in known}
    for variable in wanted:
        family = variable.split("_")[0]
        candidates = [name for name in of_others if name.startswith(family)]
        near = nearest(variable, candidates, cutoff=0.7)
        if near:
            return of_others[near]
    return None
