"""The signs of life for systemd: they come while the worker lives, and stop when it hangs."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_worker.observability.watchdog import reporting_to_systemd
from tests.processes.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")


@pytest.fixture(params=["path", pytest.param("abstract", marks=pytest.mark.skipif(sys.platform != "linux", reason=""))])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """systemd's end of the socket, and the value of NOTIFY_SOCKET."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address.replace("@", "\0") if address.startswith("@") else address)
        channel.settimeout(PATIENCE_SECONDS)
        yield channel, address


async def read(channel: socket.socket) -> str:
    return (await asyncio.to_thread(channel.recv, 100)).decode()


async def test_living_worker_is_ready_and_gives_signs_until_it_stops(systemd: tuple[socket.socket, str]) -> None:
    channel, address = systemd
    async with reporting_to_systemd(lambda: None, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000"}):
        assert [await read(channel) for _ in range(3)] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    last = await read(channel)
    while last == "WATCHDOG=1":
        last = await read(channel)
    assert last == "STOPPING=1"


async def test_worker_that_hangs_gives_no_sign(systemd: tuple[socket.socket, str]) -> None:
    channel, address = systemd
    asked = asyncio.Event()

    def hang() -> str:
        asked.set()
        return "the duty poll hangs"

    async with reporting_to_systemd(hang, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000"}):
        await asyncio.wait_for(asked.wait(), PATIENCE_SECONDS)
    assert [await read(channel) for _ in range(2)] == ["READY=1", "STOPPING=1"]


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}])
async def test_signs_that_nobody_waits_for_are_not_given(
    systemd: tuple[socket.socket, str], more: dict[str, str]
) -> None:
    channel, address = systemd
    assert os.getpid() != 1
    async with reporting_to_systemd(lambda: None, {"NOTIFY_SOCKET": address, **more}):
        await asyncio.sleep(0)
    assert [await read(channel) for _ in range(2)] == ["READY=1", "STOPPING=1"]


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all"])
async def test_worker_runs_outside_of_systemd(address: str | None) -> None:
    environment = {"WATCHDOG_USEC": "20000"} if address is None else {"NOTIFY_SOCKET": address}
    async with reporting_to_systemd(lambda: None, environment):
        await asyncio.sleep(0)
