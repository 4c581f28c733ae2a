"""Two signed-in users, an anonymous one and the service, at one project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Rest:
    """Clients of two signed-in users, of an anonymous one and of the service; the first user has a job."""

    owner: httpx.Client
    stranger: httpx.Client
    anon: httpx.Client
    service: httpx.Client
    owner_id: str
    job: str


def add(client: httpx.Client, table: str, **row: Any) -> None:
    client.post(f"/rest/v1/{table}", json=row).raise_for_status()
