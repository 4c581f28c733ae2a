"""Fetches URLs that somebody else chose, by https and from public hosts only.

Without these checks such a URL could make the worker read from its own network (server-side request forgery). A host
name is resolved once, all its addresses are checked, and the connection goes to a checked address. So it does not help
an attacker if the name resolves to another address a moment later. TLS still verifies the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

_MAX_URL_CHARACTERS = 4096
_MAX_REDIRECTS = 3
_MAX_ADDRESSES = 4
_TIMEOUT = httpx.Timeout(60, connect=10)
# IPv6 ranges that stand for IPv4 addresses (NAT64, RFC 6052 and 8215). A network may route them to private addresses.
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenAddressError(Exception):
    """The URL is not allowed. The text says why, as the end of a sentence, and does not repeat the URL."""


def is_public(address: str) -> bool:
    """Tell whether an IP address is on the public internet, not on this machine or in its network or its provider's."""
    try:
        parsed: _Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public(str(parsed.ipv4_mapped))
        if parsed.sixtofour or parsed.teredo or any(parsed in network for network in _TRANSLATED):
            return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


class NameLookUps:
    """Looks up hosts that somebody else chose, in threads of its own and one look-up at a time for each host.

    A look-up can't be ended, and one that hangs keeps its thread. In the few threads that asyncio has for all look-ups
    it would keep the worker's own calls waiting, those to Supabase and the clouds.
    """

    def __init__(self, *, most_threads: int) -> None:
        self._threads = ThreadPoolExecutor(most_threads, thread_name_prefix="look-up")
        self._running: dict[tuple[str, int], Future[list[Any]]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, each once.

        Raises:
            httpx.ConnectError: it has none, or nobody knows.
        """
        loop, is_done = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: Future[list[Any]]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(is_done.set)

        # Others may wait for the same look-up, so whoever gives up does not cancel it.
        looking = self._look_up(host, port)
        looking.add_done_callback(tell)
        await is_done.wait()
        try:
            found = looking.result()
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"the host can't be resolved ({type(error).__name__})") from None
        # An IPv6 address with a zone (`%eth0`) is no valid text for `is_public`, so it counts as not public.
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def _look_up(self, host: str, port: int) -> Future[list[Any]]:
        looking = self._running.get((host, port))
        if looking is None:
            looking = self._threads.submit(
                socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
            self._running[host, port] = looking
            looking.add_done_callback(lambda _: self._running.pop((host, port), None))
        return looking


_LOOK_UPS = NameLookUps(most_threads=4)


class PublicTransport(httpx.AsyncBaseTransport):
    """A transport that allows https to public addresses, and any request to the trusted hosts (`host:port`)."""

    def __init__(
        self,
        trusted_hosts: tuple[str, ...] = (),
        *,
        inner: httpx.AsyncBaseTransport | None = None,
        look_ups: NameLookUps = _LOOK_UPS,
    ) -> None:
        self._trusted = frozenset(trusted_hosts)
        self._inner = inner or httpx.AsyncHTTPTransport(trust_env=False)
        self._look_ups = look_ups

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the first address of the host that accepts a connection.

        Raises:
            ForbiddenAddressError: the scheme is not https, or an address of the host is not public.
            httpx.TransportError: no address answers.
        """
        url = request.url
        if f"{url.host}:{_port_of(url)}" in self._trusted:
            return await self._inner.handle_async_request(request)
        if url.scheme != "https":
            raise ForbiddenAddressError("is not an https address")
        addresses = await self._look_ups.addresses(url.host, _port_of(url))
        if not all(map(is_public, addresses)):
            raise ForbiddenAddressError("does not lie on a public address")
        error: httpx.TransportError | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            # The request's Host header already has the name. The TLS certificate must be checked for the name, too.
            extensions = {**request.extensions, "sni_hostname": url.host}
            sent = httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions=extensions,
            )
            try:
                return await self._inner.handle_async_request(sent)
            except (httpx.ConnectError, httpx.ConnectTimeout) as caught:
                error = caught
        raise error or httpx.ConnectError("the host has no address")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def _port_of(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


@asynccontextmanager
async def fetch(http: httpx.AsyncClient, url: str) -> AsyncIterator[httpx.Response]:
    """GET a URL that somebody else chose. Redirects are followed only on the same host.

    Raises:
        ForbiddenAddressError: the URL, or one that it redirects to, is not allowed.
        httpx.HTTPError: the host did not answer, or the connection broke.
    """
    for _ in range(_MAX_REDIRECTS + 1):
        if len(url) > _MAX_URL_CHARACTERS:
            raise ForbiddenAddressError("is too long")
        try:
            _ = urlsplit(url).port  # raises ValueError for an invalid port
            async with http.stream("GET", url, follow_redirects=False) as response:
                if not response.has_redirect_location:
                    yield response
                    return
                url = _follow(url, response.headers["location"])
        except (httpx.InvalidURL, ValueError):
            raise ForbiddenAddressError("is not a URL") from None
    raise ForbiddenAddressError("leads on and on")


def _follow(url: str, location: str) -> str:
    target = urljoin(url, location)
    before, after = urlsplit(url), urlsplit(target)
    if (before.scheme, before.hostname, before.port) != (after.scheme, after.hostname, after.port):
        raise ForbiddenAddressError("leads to another host")
    return target


def public_client(trusted_hosts: tuple[str, ...]) -> httpx.AsyncClient:
    """Create a client that can call only public addresses by https, and the trusted hosts (`host:port`)."""
    return httpx.AsyncClient(
        transport=PublicTransport(trusted_hosts),
        timeout=_TIMEOUT,
        trust_env=False,
        headers={"accept-encoding": "identity"},
    )
