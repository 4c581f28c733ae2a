"""The four calls of Vertex AI's REST API that a launcher needs, within bounds, each with what its answer means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import httpx

from lora_worker.errors import CreationInDoubtError, ServiceError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.answers import Answer, retry_after_seconds
from lora_worker.launchers.limits import CallLimit
from lora_worker.launchers.vertex.answers import Job, read_job
from lora_worker.launchers.vertex.calls import AccessTokens, GoogleCalls, status_of

SERVICE = "Vertex AI"
_PAGE = 100
_MOST_PAGES = 10
_OPERATIONS = ("create", "get", "list", "cancel")
_MOST_SIDE_BY_SIDE = 16
_CALLS_IN_TEN_SECONDS = {"create": 20, "get": 50, "list": 15, "cancel": 15}
"""Together 100: Google allows 600 calls a minute and region that read or change resources, of all callers together."""
_QUOTA = re.compile(r"aiplatform\.googleapis\.com/[a-z0-9_]{1,100}")
_LEAST_SECRET = 20


def most_connections(concurrency: int) -> int:
    """How many calls may be under way at the same time."""
    return len(_OPERATIONS) * min(concurrency, _MOST_SIDE_BY_SIDE)


class VertexApi:
    """Custom jobs of Vertex AI. `base` is always the address of a project's region, `url` that of a job."""

    def __init__(self, http: httpx.AsyncClient, tokens: AccessTokens, *, concurrency: int) -> None:
        most = min(concurrency, _MOST_SIDE_BY_SIDE)
        limits = {name: CallLimit(most=most, calls=_CALLS_IN_TEN_SECONDS[name]) for name in _OPERATIONS}
        self._calls = GoogleCalls(SERVICE, http, tokens, limits)

    async def create(self, base: str, job: dict[str, Any]) -> Job:
        """Make a job.

        Raises:
            CreationInDoubtError: it may have been made.
            ServiceUnavailableError: it was not; the same call may be later.
            ServiceRefusedError: it was not, since credentials, address or settings are wrong.
        """
        content = json.dumps(job, allow_nan=False).encode()
        answer = await self._calls.send("create", "POST", f"{base}/customJobs", content=content, creates=True)
        if answer.status_code >= 500:
            raise CreationInDoubtError(SERVICE, f"{SERVICE} failed while it took the job ({answer.status_code})")
        try:
            await _check(answer, sent=_values(job))
            return read_job(await answer.json())
        except (ValueError, RecursionError) as error:
            raise CreationInDoubtError(SERVICE, f"{SERVICE}'s answer holds no usable job ({error!s:.100})") from None

    async def get(self, url: str) -> Job | None:
        """Look at a job; None where there is none.

        Raises:
            ServiceError: it could not be looked at; the text says why.
        """
        answer = await self._calls.send("get", "GET", url)
        if answer.status_code == 404:
            return None
        await _check(answer)
        return await _job_of(answer)

    async def list(self, base: str, which: str, *, most: int = _PAGE * _MOST_PAGES) -> list[Job]:
        """The jobs that a filter finds, `most` at most (rounded up to a page).

        Raises:
            ServiceError: they could not be looked at; the text says why.
        """
        jobs: list[Job] = []
        token = ""
        for _ in range(_MOST_PAGES):
            parameters = {"filter": which, "pageSize": str(min(most, _PAGE)), **({"pageToken": token} if token else {})}
            answer = await self._calls.send("list", "GET", f"{base}/customJobs", parameters=parameters)
            await _check(answer)
            page, token = await _page_of(answer)
            jobs += page
            # A page may be empty and still not the last one.
            if not token or len(jobs) >= most:
                break
        return jobs

    async def cancel(self, url: str) -> None:
        """Ask for the end of a job; one that is unknown has ended.

        Raises:
            ServiceError: the request was not taken; the text says why.
        """
        answer = await self._calls.send("cancel", "POST", f"{url}:cancel", content=b"{}")
        if answer.status_code != 404:
            await _check(answer)


async def _job_of(answer: Answer) -> Job:
    try:
        return read_job(await answer.json())
    except (ValueError, RecursionError) as error:
        raise ServiceUnavailableError(SERVICE, f"{SERVICE}'s answer can't be read ({error!s:.100})") from None


async def _page_of(answer: Answer) -> tuple[list[Job], str]:
    """The jobs of one page, and the token of the next; "" after the last."""
    try:
        body = await answer.json()
        jobs = [read_job(value) for value in body.get("customJobs", [])[:_PAGE]]
        token = body.get("nextPageToken", "")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ServiceUnavailableError(SERVICE, f"{SERVICE}'s list can't be read ({error!s:.100})") from None
    return jobs, token if isinstance(token, str) and len(token) <= 4000 else ""


async def _check(answer: Answer, sent: Sequence[str] = ()) -> None:
    """Raise what the status of an answer means, if that is no success. `sent` are values that no text may repeat."""
    if not answer.is_success:
        raise refusal(answer, await status_of(answer), sent)


def refusal(answer: Answer, status: dict[str, Any], sent: Sequence[str] = ()) -> ServiceError:
    """What an answer that is no success means: a sentence for the operator, and whether a later call may succeed."""
    code = answer.status_code
    message = str(status.get("message", ""))[:2000]
    if code == 429:
        quota = _QUOTA.search(message)
        text = f"{SERVICE} takes no more requests now (429)"
        if quota:
            text = f"the quota {quota[0]} is used up (429): raise it in Google Cloud's console (IAM & Admin, Quotas)"
        return ServiceUnavailableError(SERVICE, text, retry_after_seconds=retry_after_seconds(answer.headers))
    if code >= 500 or code < 400:
        return ServiceUnavailableError(SERVICE, f"{SERVICE} failed ({code})")
    return ServiceRefusedError(SERVICE, _why_refused(code, status, message, sent), status=code)


def _why_refused(code: int, status: dict[str, Any], message: str, sent: Sequence[str]) -> str:
    details = json.dumps(status.get("details", ""), default=str)[:10_000]
    if "SERVICE_DISABLED" in details:
        remedy = "gcloud services enable aiplatform.googleapis.com"
        return f"the API of {SERVICE} is not enabled in the project ({code}): {remedy}"
    if "BILLING_DISABLED" in details:
        return f"the project has no billing account ({code}), without which {SERVICE} runs nothing"
    known = {
        401: f"{SERVICE} refused the access token (401): check the worker's credentials of Google Cloud",
        403: f"{SERVICE} refused the worker's identity (403): it needs roles/aiplatform.user in the project, and "
        "roles/iam.serviceAccountUser on LORA_WORKER_VERTEX_SERVICE_ACCOUNT",
        404: f"{SERVICE} knows no such project or region (404): check LORA_WORKER_VERTEX_PROJECT and "
        "LORA_WORKER_VERTEX_REGION",
    }
    if code in known:
        return known[code]
    # Google repeats what it finds wrong, and the variables of a container hold the run's token and signed URLs.
    is_safe = not any(value[:_LEAST_SECRET] in message for value in sent)
    sentence = " ".join(message.split())[:300]
    return f"{SERVICE} refused the job ({code})" + (f": {sentence}" if sentence and is_safe else "")


def _values(job: dict[str, Any]) -> list[str]:
    """The values of a job's variables that are long enough to be secret."""
    pool = job["jobSpec"]["workerPoolSpecs"][0]
    values = (variable["value"] for variable in pool["containerSpec"]["env"])
    return [value for value in values if len(value) >= _LEAST_SECRET]
