"""The URLs of those who are told of trouble: how they stand in one variable, and what can't be one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr

_MOST_URLS = 10
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.")
_BEFORE_URL = re.compile(rf"[,\s]+(?={_URL.pattern})")


def split_urls(value: Any) -> Any:
    """Split a text into its URLs; a value that is no text is returned unchanged.

    A comma may also stand inside of a URL, between the addresses of a mail.
    """
    return tuple(filter(None, _BEFORE_URL.split(value.strip()))) if isinstance(value, str) else value


def receivers_fault(urls: Sequence[SecretStr]) -> str | None:
    """Say what is wrong with these URLs, without showing any; None where nothing is."""
    if len(urls) > _MOST_URLS:
        return f"holds more than {_MOST_URLS} URLs; let one receiver pass them on"
    for number, url in enumerate(urls, start=1):
        if not _URL.match(url.get_secret_value()):
            return f"its URL number {number} is none; write it as mailto://…, slack://… or json://…"
    return None
