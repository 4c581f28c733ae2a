"""Calls of Google's REST APIs: with an access token, within bounds, and with words where there is no answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import httpx

from lora_contract.connections import why_unreachable
from lora_worker.errors import CreationInDoubtError, ServiceUnavailableError
from lora_worker.launchers.answers import Answer
from lora_worker.launchers.calls import call_within
from lora_worker.launchers.limits import CallLimit

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class AccessTokens(Protocol):
    """Where the access token of each call comes from."""

    async def token(self) -> str:
        """A valid token. Raises: ServiceRefusedError, ServiceUnavailableError: there is none."""

    def forget(self, token: str) -> None:
        """Note that this one was refused."""


class GoogleCalls:
    """The calls of one API; `service` is its name in sentences. `limits` has a bound for each operation."""

    def __init__(
        self, service: str, http: httpx.AsyncClient, tokens: AccessTokens, limits: Mapping[str, CallLimit]
    ) -> None:
        self._service, self._http, self._tokens, self._limits = service, http, tokens, limits

    async def send(
        self,
        operation: str,
        method: str,
        url: str,
        *,
        parameters: dict[str, str] | None = None,
        content: bytes | None = None,
        creates: bool = False,
    ) -> Answer:
        """Send one call and read its answer, whatever its status. `creates`: what it makes must not be made twice.

        Raises:
            CreationInDoubtError: what it creates has no answer.
            ServiceUnavailableError: there is no answer; ServiceRefusedError: there is no token.
        """
        token = await self._tokens.token()
        headers = {"Authorization": f"Bearer {token}"}
        try:
            answer = await call_within(
                self._limits[operation], self._http, operation, method, url,
                headers=headers, parameters=parameters, content=content,
            )  # fmt: skip
        except httpx.HTTPError as error:
            is_in_doubt = creates and not isinstance(error, _NOT_SENT)
            unavailable = CreationInDoubtError if is_in_doubt else ServiceUnavailableError
            raise unavailable(self._service, f"{self._service} did not answer: {why_unreachable(error)}") from None
        if answer.status_code == 401:
            self._tokens.forget(token)
        return answer


async def status_of(answer: Answer) -> dict[str, Any]:
    """The `google.rpc.Status` of an answer's error, which may lack everything."""
    try:
        error = (await answer.json())["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}
