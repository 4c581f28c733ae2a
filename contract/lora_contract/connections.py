"""Explains why an HTTP call failed, in words that name the host but show no other part of the URL."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator

import httpx

_MAX_HOST_CHARACTERS = 253


def why_unreachable(error: httpx.HTTPError) -> str:
    """Describe a failed call in one clause, such as “p.supabase.co can't be resolved (DNS)”.

    Only host and port of the URL are shown: path, query and user name may contain tokens.
    """
    return f"{_host_of(error)} {_reason(error)}"


def _host_of(error: httpx.HTTPError) -> str:
    try:
        url = error.request.url
    except RuntimeError:
        # httpx raises this for the few errors that it made without a request.
        return "the host"
    shown = url.host[:_MAX_HOST_CHARACTERS]
    return shown if url.port is None else f"{shown}:{url.port}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _reason(error: httpx.HTTPError) -> str:
    for cause in _causes(error):
        for kind, words in _OF_CAUSES:
            if isinstance(cause, kind):
                return words(cause)
    if isinstance(error, httpx.HTTPStatusError):
        return f"answered {error.response.status_code}"
    texts = [text for kind, text in _OF_ERRORS if isinstance(error, kind)]
    if texts:
        return texts[0]
    numbers = [cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno]
    return f"could not be reached ({os.strerror(numbers[0]) if numbers else type(error).__name__})"


def _of_certificate(cause: BaseException) -> str:
    why = getattr(cause, "verify_message", "") or "not valid"
    return f"shows a certificate that is not trusted (TLS: {why})"


def _of_tls(cause: BaseException) -> str:
    why = getattr(cause, "reason", "") or type(cause).__name__
    return f"could not be spoken to securely (TLS: {why})"


def _plain(text: str) -> Callable[[BaseException], str]:
    return lambda _: text


# The first match is used, so subclasses stand before their base classes: a certificate error is also an SSL error, and
# a refused connection is also a connection error.
_OF_CAUSES: tuple[tuple[type[BaseException], Callable[[BaseException], str]], ...] = (
    (socket.gaierror, _plain("can't be resolved (DNS)")),
    (ssl.SSLCertVerificationError, _of_certificate),
    (ssl.SSLError, _of_tls),
    (ConnectionRefusedError, _plain("refused the connection")),
    (ConnectionError, _plain("broke the connection off")),
)

_OF_ERRORS: tuple[tuple[type[httpx.HTTPError], str], ...] = (
    (httpx.PoolTimeout, "got no connection, since too many calls are under way"),
    (httpx.ConnectTimeout, "took no connection in time"),
    (httpx.TimeoutException, "did not answer in time"),
    (httpx.ProxyError, "could not be reached through the proxy"),
    (httpx.DecodingError, "answered with a body that can't be unpacked"),
    (httpx.TooManyRedirects, "redirects without an end"),
    (httpx.UnsupportedProtocol, "can't be called by this URL's protocol"),
    (httpx.RemoteProtocolError, "broke the connection off, or speaks no HTTP"),
    (httpx.ReadError, "broke the connection off"),
    (httpx.WriteError, "broke the connection off"),
)
