"""Fetching from addresses that somebody else chose: https and public hosts only, by the address that was checked.

A name is resolved once, each of its addresses is looked at, and the connection goes to one of these: a name that
resolves to something else a moment later leads nowhere else. TLS still asks for the name.
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
# Behind these lie IPv4 addresses, and some networks lead them to their own.
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenAddressError(Exception):
    """The address is not one to fetch from; the text says why, and does not repeat it."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet's, and not of this machine, its network or its provider."""
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
    """Carries requests by https to public addresses, and to the trusted hosts as they are asked for."""

    def __init__(self, trusted_hosts: tuple[str, ...] = (), *, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._trusted = frozenset(trusted_hosts)
        self._inner = inner or httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request to the first of the host's addresses that can be reached.

        Raises:
            ForbiddenAddressError: the scheme is another, or an address is not public.
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
            # The Host header was written before; the certificate must be the name's, too.
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
    # A zone of an IPv6 address names a network of this machine.
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@asynccontextmanager
async def fetch(http: httpx.AsyncClient, url: str) -> AsyncIterator[httpx.Response]:
    """GET what a foreign URL names; redirects are followed on the same host alone.

    Raises:
        ForbiddenAddressError: the URL, or one that it leads to, is not one to fetch from.
        httpx.HTTPError: it broke off.
    """
    for _ in range(_MAX_REDIRECTS + 1):
        if len(url) > _MAX_URL_CHARACTERS:
            raise ForbiddenAddressError("is too long")
        try:
            _ = urlsplit(url).port  # refuses one that there is not
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
    """A client that reaches public addresses by https, and the trusted hosts (`host:port`)."""
    return httpx.AsyncClient(
        transport=PublicTransport(trusted_hosts),
        timeout=_TIMEOUT,
        trust_env=False,
        headers={"accept-encoding": "identity"},
    )
