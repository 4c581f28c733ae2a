"""URLs named by a container are fetched from public addresses only, at the address that was checked."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_worker.storage.public_web import ForbiddenAddressError, PublicTransport, fetch, is_public
from tests.processes.certificates import self_signed

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "not an address", "",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_local_and_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "142.250.185.78", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_internet_address_is_public(address: str) -> None:
    assert is_public(address)


class Names:
    """A resolver whose answers change from call to call."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


class Wire(httpx.AsyncBaseTransport):
    """Records the requests, and returns a prepared answer."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else httpx.Response(200, content=b"x")
        if isinstance(answer, Exception):
            raise answer
        return answer


async def fetched(wire: Wire, url: str = "https://files.example/a?token=t", trusted: tuple[str, ...] = ()) -> bytes:
    async with httpx.AsyncClient(transport=PublicTransport(trusted, inner=wire)) as http, fetch(http, url) as response:
        return await response.aread()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    resolver = Names(["93.184.215.14"])
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    return resolver


async def test_connection_uses_the_checked_address_and_tls_the_name(names: Names) -> None:
    names.answers = [["93.184.215.14"], ["127.0.0.1"]]
    wire = Wire()
    assert await fetched(wire) == b"x"
    (request,) = wire.requests
    assert request.url == "https://93.184.215.14/a?token=t"
    assert request.headers["host"] == "files.example"
    assert request.extensions["sni_hostname"] == "files.example"
    assert names.asked == ["files.example"]


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "10.1.2.3"])
async def test_name_with_a_private_address_is_not_connected_to(names: Names, address: str) -> None:
    names.answers = [["93.184.215.14", address]]
    wire = Wire()
    with pytest.raises(ForbiddenAddressError, match="public"):
        await fetched(wire)
    assert wire.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://files.example/a", "ftp://files.example/a", "file:///etc/passwd", "files.example/a", "", "https://",
        "https://[::1/a", "https://files.example:99999/a", "https://" + "a" * 5000, "https://\x00/",
    ],
)  # fmt: skip
async def test_only_https_addresses_are_fetched(names: Names, url: str) -> None:
    wire = Wire()
    with pytest.raises((ForbiddenAddressError, httpx.UnsupportedProtocol)):
        await fetched(wire, url)
    assert wire.requests == []


def redirect(to: str) -> httpx.Response:
    return httpx.Response(302, headers={"location": to})


@pytest.mark.parametrize(
    "to",
    ["https://elsewhere.example/a", "http://files.example/a", "https://files.example:8443/a", "//169.254.169.254/"],
)
async def test_redirect_to_another_host_is_not_followed(names: Names, to: str) -> None:
    wire = Wire(redirect(to))
    with pytest.raises(ForbiddenAddressError, match="another host"):
        await fetched(wire)
    assert len(wire.requests) == 1


async def test_redirect_on_the_same_host_is_checked_again(names: Names) -> None:
    assert await fetched(Wire(redirect("/b"))) == b"x"
    names.answers = [["93.184.215.14"], ["127.0.0.1"]]
    wire = Wire(redirect("/b"))
    with pytest.raises(ForbiddenAddressError, match="public"):
        await fetched(wire)
    assert len(wire.requests) == 1


async def test_endless_redirects_are_stopped(names: Names) -> None:
    wire = Wire(*[redirect(f"/{number}") for number in range(50)])
    with pytest.raises(ForbiddenAddressError, match="on and on"):
        await fetched(wire)
    assert len(wire.requests) <= 4


async def test_next_address_is_tried_after_an_unreachable_one(names: Names) -> None:
    names.answers = [["2606:4700:4700::1111", "1.1.1.1"]]
    wire = Wire(httpx.ConnectError("refused"))
    assert await fetched(wire) == b"x"
    assert [request.url.host for request in wire.requests] == ["2606:4700:4700::1111", "1.1.1.1"]


async def test_look_up_that_hangs_keeps_no_other_call_waiting(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, answered = threading.Event(), names.getaddrinfo

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        found = answered(host, port)
        assert host != "slow.example" or go_on.wait(60)
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as own_calls:
        loop.set_default_executor(own_calls)
        slow = [asyncio.create_task(fetched(Wire(), "https://slow.example/")) for _ in range(3)]
        try:
            async with asyncio.timeout(30):
                while not names.asked:
                    await asyncio.sleep(0.01)
                await loop.getaddrinfo("supabase.example", 443)
                assert await fetched(Wire()) == b"x", "nor another host's"
            slow[0].cancel()
        finally:
            go_on.set()
        found = await asyncio.gather(*slow, return_exceptions=True)
    assert [type(each) for each in found] == [asyncio.CancelledError, bytes, bytes]
    assert names.asked.count("slow.example") == 1


@pytest.fixture
async def tls_server(tmp_path: Path) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """A server on this machine with a certificate for files.example: its port, and a context that trusts it."""
    pem = self_signed("files.example", tmp_path)
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(pem)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=shown) as server:
        yield server.sockets[0].getsockname()[1], ssl.create_default_context(cafile=str(pem))


async def test_certificate_is_checked_against_the_host_name(
    names: Names, tls_server: tuple[int, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, trusting = tls_server
    names.answers = [["127.0.0.1"]]
    monkeypatch.setattr("lora_worker.storage.public_web.is_public", lambda address: address == "127.0.0.1")
    transport = PublicTransport(inner=httpx.AsyncHTTPTransport(verify=trusting))
    async with httpx.AsyncClient(transport=transport) as http:
        async with fetch(http, f"https://files.example:{port}/a") as response:
            assert await response.aread() == b"x"
        with pytest.raises(httpx.ConnectError, match=r"(?i)hostname mismatch"):
            async with fetch(http, f"https://another.example:{port}/a"):
                pass


async def test_trusted_host_is_exempt_only_at_its_own_port(names: Names) -> None:
    wire = Wire()
    assert await fetched(wire, "http://127.0.0.1:8080/a", ("127.0.0.1:8080",)) == b"x"
    assert wire.requests[0].url == "http://127.0.0.1:8080/a"
    with pytest.raises(ForbiddenAddressError):
        await fetched(wire, "http://127.0.0.1:8081/a", ("127.0.0.1:8080",))
    assert len(wire.requests) == 1
