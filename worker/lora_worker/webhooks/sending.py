"""Signs an event and sends it to an endpoint once; what its answer means.

The form is that of https://www.standardwebhooks.com (specification 1.0): three headers, of which the signature holds
one HMAC-SHA256 for each secret over `id.timestamp.body`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from lora_contract.connections import why_unreachable
from lora_worker.configuration.settings import Settings
from lora_worker.configuration.webhooks import WebhookEndpoint
from lora_worker.launchers.answers import retry_after_seconds
from lora_worker.storage.public_web import ForbiddenAddressError, NameLookUps, PublicTransport

SEND_SECONDS = 20.0
"""How long a delivery may take altogether. The specification recommends 15 to 30 seconds."""
_TIMEOUT = httpx.Timeout(15, connect=5)
MOST_CONNECTIONS = 100
"""To ten endpoints, ten deliveries each: one that waits for a connection would use up its time."""
_GONE = 410
_LOOK_UPS = NameLookUps(most_threads=10)
"""A thread for each endpoint: one whose name is not answered keeps no other waiting."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of a delivery."""

    status: int | None = None
    """Of the answer; None where there was none."""
    problem: str | None = None
    """Why it is not delivered, as a clause without the URL; None where it is."""
    retry_after_seconds: float | None = None

    @property
    def is_delivered(self) -> bool:
        """Whether the endpoint has taken it."""
        return self.problem is None

    @property
    def is_gone(self) -> bool:
        """Whether the endpoint wants no more events."""
        return self.status == _GONE


def sign(keys: Sequence[bytes], message_id: str, timestamp: int, body: str) -> str:
    """The value of `webhook-signature`: a `v1` signature for each key, so that a receiver may know any one of them."""
    content = f"{message_id}.{timestamp}.{body}".encode()
    digests = (hmac.new(key, content, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


@asynccontextmanager
async def open_sender(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client for endpoints: by https to public addresses, or to the hosts that the settings name. No redirects."""
    inner = httpx.AsyncHTTPTransport(trust_env=False, limits=httpx.Limits(max_connections=MOST_CONNECTIONS))
    transport = PublicTransport(settings.webhook_hosts, inner=inner, look_ups=_LOOK_UPS)
    async with httpx.AsyncClient(
        transport=transport, timeout=_TIMEOUT, trust_env=False, follow_redirects=False
    ) as client:
        yield client


async def send(http: httpx.AsyncClient, endpoint: WebhookEndpoint, message_id: str, body: str, *, now: float) -> Sent:
    """Send an event once. `now` is in Unix seconds. Of the answer nothing but status and headers is read."""
    timestamp = int(now)
    headers = {
        "content-type": "application/json",
        "user-agent": "lora-worker",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(endpoint.keys, message_id, timestamp, body),
    }
    try:
        async with (
            asyncio.timeout(SEND_SECONDS),
            http.stream("POST", endpoint.url, headers=headers, content=body.encode()) as response,
        ):
            return read_answer(response)
    except TimeoutError:
        return Sent(problem=f"did not answer in {SEND_SECONDS:.0f} s")
    except ForbiddenAddressError as error:
        return Sent(problem=f"the endpoint {error}: name it in LORA_WORKER_WEBHOOK_HOSTS if it is your own")
    except httpx.HTTPError as error:
        return Sent(problem=why_unreachable(error))
    except (httpx.InvalidURL, ValueError):
        return Sent(problem="its URL can't be called")


def read_answer(response: httpx.Response) -> Sent:
    """What an endpoint's answer means. Only 2xx is delivered, and a redirect is none."""
    status = response.status_code
    if response.is_success:
        return Sent(status)
    if status == _GONE:
        return Sent(status, "it answered 410: it wants no more events")
    if response.is_redirect:
        return Sent(status, f"it redirects ({status}), which is not followed: set the URL that it leads to")
    return Sent(status, f"it answered {status}", retry_after_seconds(response.headers))
