"""Asks the running worker of this machine whether it is alive, for a container's health check.

Only the standard library is used: the check runs every half minute, beside a worker on a machine of 256 MB.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOCKET_PREFIX = "lora-worker-health-"
"""A worker without a port listens on a Unix socket with this name and its process id. The name is abstract: it is in no
folder, since the container's file system may be read-only. Only Linux has such names."""

_SECONDS = 5.0
_MAX_BYTES = 10_000
_SOCKETS = Path("/proc/net/unix")
_ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 asked, and not listened on


def socket_name(process_id: int) -> str:
    """The abstract name under which the worker with this process id listens."""
    return f"\0{SOCKET_PREFIX}{process_id}"


@dataclass(frozen=True)
class Health:
    """What the check found: `problem` is a sentence, or None while the worker is alive."""

    problem: str | None


def check_health(environment: Mapping[str, str] = os.environ) -> Health:
    """Ask /healthz at the worker's port; without a port, at the Unix sockets of the workers of this machine."""
    try:
        port = int(environment.get("LORA_WORKER_HTTP_PORT") or 0)
    except ValueError:
        return Health("LORA_WORKER_HTTP_PORT is no number.")
    if port:
        host = environment.get("LORA_WORKER_HTTP_HOST", "127.0.0.1")
        return Health(_ask((_ANY_ADDRESS.get(host, host), port)))
    names = _socket_names()
    if not names:
        return Health("No worker runs here. If one does, set LORA_WORKER_HTTP_PORT: it listens on no other socket.")
    return Health(next((problem for name in names if (problem := _ask(name))), None))


def _socket_names() -> list[bytes]:
    """The abstract names under which workers listen: in /proc/net/unix they begin with an @ instead of a zero byte."""
    try:
        rows = _SOCKETS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    last = {row.rpartition(" ")[2] for row in rows}
    return [b"\0" + name[1:].encode() for name in sorted(last) if name.startswith(f"@{SOCKET_PREFIX}")]


def _ask(address: tuple[str, int] | bytes) -> str | None:
    """Return what is wrong with the worker that listens there; None while it is alive."""
    try:
        answer = _get_healthz(address)
        status = int(answer.split(b" ", 2)[1])
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        if status == 200 and body["ok"] is True:
            return None
        return f"The worker is not alive: {str(body['problem'])[:500]}."
    except OSError as error:
        return f"The worker does not answer ({error.strerror or type(error).__name__})."
    except (ValueError, LookupError, TypeError):
        return "Something else than the worker answers at its port."


def _get_healthz(address: tuple[str, int] | bytes) -> bytes:
    if isinstance(address, bytes):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_SECONDS)
        connection.connect(address)
    else:
        connection = socket.create_connection(address, timeout=_SECONDS)
    with connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        answer = b""
        while len(answer) < _MAX_BYTES and (part := connection.recv(4096)):
            answer += part
    return answer
