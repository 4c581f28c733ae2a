"""What the containers of custom jobs have printed, from Cloud Logging (`entries.list` of its API v2).

Vertex AI sends there what a container prints, and its own words about a job, as entries of the resource `ml_job`.
Whoever reads them needs `roles/logging.viewer` in the project. Google allows 60 such calls a minute and project.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from lora_worker.errors import ServiceError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.answers import Answer, retry_after_seconds
from lora_worker.launchers.base import ContainerLine
from lora_worker.launchers.limits import CallLimit
from lora_worker.launchers.vertex.calls import AccessTokens, GoogleCalls

LOGGING_URL = "https://logging.googleapis.com"
_SERVICE = "Cloud Logging"
_LIST = "entries:list"
_MOST_ENTRIES = 1000
"""Google gives no more at once."""
_FOLLOW_SECONDS = 10.0
_PAUSE_SECONDS = 3.0


class _Resource(BaseModel):
    model_config = ConfigDict(extra="ignore")

    labels: dict[str, str] = Field(default_factory=dict)


class _Entry(BaseModel):
    """An entry, as far as the worker reads it. A container's line is text, or an object with a `message`."""

    model_config = ConfigDict(extra="ignore")

    timestamp: AwareDatetime | None = None
    text: str | None = Field(default=None, alias="textPayload")
    structure: dict[str, Any] = Field(default_factory=dict, alias="jsonPayload")
    resource: _Resource = _Resource()

    def line(self, number: str) -> ContainerLine:
        """The line that it is, of a job's container."""
        message = self.structure.get("message", "")
        text = self.text if self.text is not None else message if isinstance(message, str) else ""
        is_googles = self.resource.labels.get("task_name") == "service"
        return ContainerLine(number, text.rstrip("\n"), is_launchers=is_googles, at=self.timestamp)


class JobLogs:
    """The entries of custom jobs, by Google's number of a job."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        tokens: AccessTokens,
        *,
        url: str = LOGGING_URL,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._calls = GoogleCalls(_SERVICE, http, tokens, {_LIST: CallLimit(most=2, calls=8)})
        self._url, self._pause = url, pause

    async def read(self, project: str, number: str, *, most_lines: int) -> list[ContainerLine]:
        """The last lines of a job, oldest first.

        Raises:
            ServiceError: they can't be read; the text says why.
        """
        entries = await self._list(project, number, order="desc", most=min(most_lines, _MOST_ENTRIES))
        return [entry.line(number) for entry in reversed(entries)]

    async def follow(self, project: str, number: str, *, since: datetime | None) -> AsyncIterator[ContainerLine]:
        """The lines of a job as they come; ends after some seconds without one.

        Raises:
            ServiceError: they can't be read; the text says why.
        """
        silent_seconds = 0.0
        while silent_seconds < _FOLLOW_SECONDS:
            before = since
            for entry in await self._list(project, number, order="asc", most=_MOST_ENTRIES, since=since):
                since = entry.timestamp or since
                yield entry.line(number)
            # Entries without a time would come again and again.
            silent_seconds = 0.0 if since != before else silent_seconds + _PAUSE_SECONDS
            await self._pause(_PAUSE_SECONDS)

    async def _list(
        self, project: str, number: str, *, order: str, most: int, since: datetime | None = None
    ) -> list[_Entry]:
        which = f'resource.type="ml_job" AND resource.labels.job_id="{number}"'
        if since is not None:
            which += f' AND timestamp>"{since.isoformat()}"'
        body = {
            "resourceNames": [f"projects/{project}"],
            "filter": which,
            "orderBy": f"timestamp {order}",
            "pageSize": most,
        }
        answer = await self._calls.send(_LIST, "POST", f"{self._url}/v2/{_LIST}", content=json.dumps(body).encode())
        if not answer.is_success:
            raise _refusal(answer)
        try:
            found = (await answer.json()).get("entries", [])
            return [_Entry.model_validate(value) for value in found[:most]]
        except ValidationError:
            raise ServiceUnavailableError(_SERVICE, f"{_SERVICE}'s answer has an entry that can't be read") from None
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ServiceUnavailableError(_SERVICE, f"{_SERVICE}'s answer can't be read ({error!s:.100})") from None


def _refusal(answer: Answer) -> ServiceError:
    """What an answer that is no success means."""
    code = answer.status_code
    if code == 429 or code >= 500 or code < 400:
        text = f"{_SERVICE} has no answer now ({code})"
        return ServiceUnavailableError(_SERVICE, text, retry_after_seconds=retry_after_seconds(answer.headers))
    right = ": the worker's identity needs roles/logging.viewer in the project" if code == 403 else ""
    return ServiceRefusedError(_SERVICE, f"{_SERVICE} refused the look at the log ({code}){right}", status=code)
