"""A call that gets no answer is explained with its host and the reason, without secrets of the URL. Real sockets."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from lora_contract.connections import why_unreachable
from tests.processes.certificates import self_signed

_SECRETS = "path-secret?token=query-secret"


async def explanation(url: str) -> str:
    """The explanation of a GET that fails."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(30, read=0.2)) as http:
        with pytest.raises(httpx.HTTPError) as caught:
            await http.get(url, headers={"authorization": "Bearer header-secret"})
    text = why_unreachable(caught.value)
    assert "secret" not in text
    assert "\n" not in text
    return text


@contextmanager
def serving(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one connection with this function; yields the server's address."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            behave(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        served = thread.submit(serve)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        served.result()


async def test_host_without_an_address_is_explained() -> None:
    assert await explanation(f"https://nowhere.invalid/{_SECRETS}") == "nowhere.invalid can't be resolved (DNS)"


async def test_refused_connection_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert await explanation(f"http://{address}/{_SECRETS}") == f"{address} refused the connection"


async def test_server_that_hangs_up_is_explained() -> None:
    with serving(lambda connection: None) as address:
        assert (await explanation(f"http://{address}/{_SECRETS}")).startswith(f"{address} broke the connection off")


async def test_server_that_does_not_speak_http_is_explained() -> None:
    with serving(lambda connection: connection.sendall(b"220 mail.example ESMTP secret\r\n")) as address:
        assert (await explanation(f"http://{address}/{_SECRETS}")).startswith(f"{address} broke the connection off")


async def test_server_that_never_answers_is_explained() -> None:
    def listen(connection: socket.socket) -> None:
        while connection.recv(1000):
            pass

    with serving(listen) as address:
        assert await explanation(f"http://{address}/{_SECRETS}") == f"{address} did not answer in time"


async def test_server_without_tls_is_explained() -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(answer) as address:
        text = await explanation(f"https://{address}/{_SECRETS}")
    assert text.startswith(f"{address} could not be spoken to securely (TLS: ")


async def test_untrusted_certificate_is_explained(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed("nobody.example", tmp_path))

    def shake_hands(connection: socket.socket) -> None:
        with pytest.raises(OSError):  # noqa: PT011 (the client hangs up in the middle, in one of several ways)
            context.wrap_socket(connection, server_side=True)

    with serving(shake_hands) as address:
        text = await explanation(f"https://{address}/{_SECRETS}")
    assert text.startswith(f"{address} shows a certificate that is not trusted (TLS: self")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectTimeout(""), "the host took no connection in time"),
        (httpx.PoolTimeout(""), "the host got no connection, since too many calls are under way"),
        (httpx.ProxyError("secret"), "the host could not be reached through the proxy"),
        (httpx.ConnectError("secret"), "the host could not be reached (ConnectError)"),
        (httpx.ReadError("secret"), "the host broke the connection off"),
        (httpx.HTTPError("secret"), "the host could not be reached (HTTPError)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_faults_have_fixed_texts_without_the_errors_words(error: httpx.HTTPError, words: str) -> None:
    assert why_unreachable(error) == words


def test_unsuccessful_answer_is_described_by_its_status() -> None:
    request = httpx.Request("GET", "https://p.supabase.co/secret")
    error = httpx.HTTPStatusError("secret", request=request, response=httpx.Response(503, text="secret"))
    assert why_unreachable(error) == "p.supabase.co answered 503"


def test_network_that_is_down_is_explained() -> None:
    error = httpx.ConnectError("secret", request=httpx.Request("GET", "https://u:secret@p.supabase.co/secret"))
    error.__cause__ = OSError(101, "secret")
    assert why_unreachable(error) == "p.supabase.co could not be reached (Network is unreachable)"
