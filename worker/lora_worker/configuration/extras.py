"""Packages that the plain install has not: whether they are there, found without importing them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from lora_worker.errors import SettingsError


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those of these packages, by the names under which they are imported, that are not installed."""
    return [name for name in names if not _is_there(name)]


def require_extra(whose: str, package: str, imported: str, extra: str) -> None:
    """Check that what an extra of ours brings is installed. `imported` is the name under which it is imported.

    Raises:
        SettingsError: it is not; the text says how it is installed.
    """
    if missing_packages([imported]):
        raise SettingsError(f"{whose} needs {package}, which is not installed: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """How one of our extras is installed, as a part of a sentence."""
    # Never by our name: on PyPI it is not ours.
    return f"pip install '.[{extra}]' in the clone"


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package around it is there
        return False
