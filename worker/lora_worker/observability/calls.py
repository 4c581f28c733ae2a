"""An HTTP client that measures the calls to services: how long each takes, and how it fails."""

from __future__ import annotations

import time
from typing import Any

import httpx

from lora_worker.observability.metrics import API_ERRORS, API_SECONDS, status_label

_NAME = "lora_worker.call"
_OTHER = ("other", "other")


def called(service: str, operation: str) -> dict[str, Any]:
    """Return the `extensions` of a request: under which names it is measured. Both are names of our own code."""
    return {_NAME: (service, operation)}


class MeasuredClient(httpx.AsyncClient):
    """The client of all calls to services. What it measures of a stream ends with the answer's headers."""

    async def send(self, request: httpx.Request, **how: Any) -> httpx.Response:
        """Send a request; see `httpx.AsyncClient.send`."""
        service, operation = request.extensions.get(_NAME, _OTHER)
        began_at = time.perf_counter()
        try:
            response = await super().send(request, **how)
        except httpx.TimeoutException:
            API_ERRORS.labels(service, operation, "timeout").inc()
            raise
        except httpx.TransportError:
            API_ERRORS.labels(service, operation, "unreachable").inc()
            raise
        finally:
            API_SECONDS.labels(service, operation).observe(time.perf_counter() - began_at)
        if response.status_code >= 400:
            API_ERRORS.labels(service, operation, status_label(response.status_code)).inc()
        return response
