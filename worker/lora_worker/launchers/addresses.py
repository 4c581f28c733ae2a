"""Where a launcher's key may be sent: rows name endpoints, and no row may steer the key to another host."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

_ENDPOINT_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


def endpoint_id_of(address: str) -> str | None:
    """Return the id at the end of an endpoint's address; None where what stands there is no id."""
    found = address.rpartition("/")[2]
    return found if _ENDPOINT_ID.fullmatch(found) else None


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """The address in an endpoint, and what stands behind its `#`: which machines there are meant; may be empty."""
    address, _, named = endpoint.partition("#")
    return address.rstrip("/"), named


class Addresses:
    """The endpoint of the settings, every other one of the same API, and those that a setting names."""

    def __init__(self, url: str, former: Iterable[str] = ()) -> None:
        self.present = url.rstrip("/")
        self._named = {self.present, *(address.rstrip("/") for address in former)}
        parts = urlsplit(self.present)
        parent, _, own_id = self.present.rpartition("/")
        # Beside an address without a path there is nothing but other hosts.
        self._parent = parent if own_id and parts.path not in {"", "/"} else None

    def of(self, endpoint: str | None) -> str | None:
        """The address to call for an endpoint as a row names it; None where the key must not go there."""
        if endpoint is None:
            return self.present
        if endpoint in self._named:
            return endpoint
        parent = endpoint.rpartition("/")[0]
        return endpoint if parent == self._parent and endpoint_id_of(endpoint) else None
