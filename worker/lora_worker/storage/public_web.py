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
from contextlib import asynccontextmanager
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


class PublicTransport(httpx.AsyncBaseTransport):
    """A transport that allows https to public addresses, and any request to the trusted hosts (`host:port`)."""

    def __init__(self, trusted_hosts: tuple[str, ...] = (), *, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._trusted = frozenset(trusted_hosts)
        self._inner = inner or httpx.AsyncHTTPTransport(trust_env=False)

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
        addresses = await _resolve(url.host, _port_of(url))
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


async def _resolve(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"the host can't be resolved ({type(error).__name__})") from None
    # An IPv6 address with a zone (`%eth0`) is no valid text for `is_public`, so it counts as not public.
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


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
