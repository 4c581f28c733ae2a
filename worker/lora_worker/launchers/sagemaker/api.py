"""The calls to AWS through boto3, in threads, and what their errors mean. boto3 is imported by the first call."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from lora_worker.errors import (
    LaunchInDoubtError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
)
from lora_worker.launchers.answers import retry_after_seconds
from lora_worker.launchers.threads import in_thread
from lora_worker.observability.metrics import API_ERRORS, API_SECONDS, status_label

SERVICE = "SageMaker"
MOST_SIDE_BY_SIDE = 16
_CONNECT_SECONDS = 10
_ATTEMPTS = 2
_CREDENTIALS_SECONDS = 30
"""boto3 may have to ask for credentials first, and a `credential_process` of a profile has no time-out there."""
_UNREADABLE = (ValueError, AttributeError, TypeError)
"""What boto3 raises for an answer that is no JSON object."""
_THROTTLED = frozenset(
    {
        "LimitExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
    }
)
_OWN_FAULTS = frozenset({"InternalFailure", "InternalServerError", "ServiceUnavailable", "ServiceUnavailableException"})
_BAD_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_NO_RIGHT = frozenset({"AccessDenied", "AccessDeniedException", "NotAuthorized", "UnauthorizedOperation"})
_ACTION = re.compile(r"not authorized to perform: ([a-z0-9-]{1,40}:[A-Za-z]{1,80})")
_QUOTA_IS_ZERO = re.compile(r"\bis 0 Instances\b")
_QUOTA_OF_TIME = re.compile(r"\bis [0-9]+ Seconds\b", re.IGNORECASE)
"""As of "Longest run time for a training job": each job that may run longer is refused, however few there are."""
_MOST_TEXT = 300
_LONG = re.compile(r"[A-Za-z0-9_=/+-]{48,}")
_REMEDY = (
    "give the worker a role (on a machine of AWS), or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_CREDENTIALS = {
    "NoCredentialsError": "there are no credentials of AWS",
    "PartialCredentialsError": "the credentials of AWS are not whole: the id or the secret of the key is missing",
    "ProfileNotFound": "AWS_PROFILE names a profile that is in no file of AWS here",
}
"""What boto3 finds wrong before it calls AWS, by the error's name."""

Expected = Callable[[str, str], bool]
"""Tells by an error's code and text whether it is one that the caller has an answer to."""


class AwsApi:
    """boto3's clients, each made when it is needed first. Safe side by side."""

    def __init__(
        self,
        *,
        concurrency: int = MOST_SIDE_BY_SIDE,
        timeout_seconds: float = 20,
        attempts: int = _ATTEMPTS,
        make: Callable[..., Any] | None = None,
    ) -> None:
        """`make` takes a service's name, and region and config by name, as `boto3.session.Session().client` does."""
        self._most = min(concurrency, MOST_SIDE_BY_SIDE)
        self._timeout_seconds, self._attempts, self._make = timeout_seconds, attempts, make
        self._slots = asyncio.Semaphore(self._most)
        self._most_seconds = _CREDENTIALS_SECONDS + attempts * (_CONNECT_SECONDS + timeout_seconds)
        self._clients: dict[tuple[str, str, int], Any] = {}
        self._lock = Lock()

    async def call(
        self,
        region: str,
        service: str,
        operation: str,
        request: dict[str, Any],
        *,
        creates: bool = False,
        expected: Expected = lambda _code, _text: False,
    ) -> dict[str, Any] | None:
        """The answer to an operation (`describe_training_job`); None where it was refused as `expected`.

        Raises:
            ServiceUnavailableError: it was not carried out, and may be later.
            ServiceRefusedError: credentials, rights, quota or request are wrong.
            LaunchInDoubtError: with `creates`, it may have been carried out.
        """
        import botocore.exceptions as faults
        from botocore.parsers import ResponseParserError

        # A creation whose answer is lost must be told: boto3's next try may be refused, as if nothing had been made.
        attempts = 1 if creates else self._attempts
        began_at = time.perf_counter()
        try:
            async with asyncio.timeout(self._most_seconds):
                return await in_thread(
                    lambda: self._carry_out(self._client(region, service, attempts), operation, request), self._slots
                )
        except faults.ClientError as error:
            code, text = code_of(error)
            API_ERRORS.labels("launcher", operation, status_label(_status_of(error))).inc()
            if expected(code, text):
                return None
            if code in _BAD_CREDENTIALS:
                # They are read again for the next call: somebody may have renewed them.
                self._clients.clear()
            raise explain_refusal(error, creates=creates) from None
        # OSError: TimeoutError, too.
        except (faults.BotoCoreError, ResponseParserError, OSError, *_UNREADABLE) as error:
            API_ERRORS.labels("launcher", operation, "unreachable").inc()
            raise explain_failure(error, creates=creates) from None
        finally:
            API_SECONDS.labels("launcher", operation).observe(time.perf_counter() - began_at)

    @staticmethod
    def _carry_out(client: Any, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        answer = getattr(client, operation)(**request)
        return answer if isinstance(answer, dict) else {}

    def _client(self, region: str, service: str, attempts: int) -> Any:
        key = (region, service, attempts)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = self._new_client(*key)
            return self._clients[key]

    def _new_client(self, region: str, service: str, attempts: int) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=self._timeout_seconds,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            max_pool_connections=self._most,
        )
        make = self._make or boto3.session.Session().client
        return make(service, region_name=region, config=config)


def code_of(error: Any) -> tuple[str, str]:
    """The code and the text of a botocore `ClientError`."""
    told = error.response.get("Error") or {}
    return str(told.get("Code") or "")[:100], str(told.get("Message") or "")[:5000]


def explain_refusal(error: Any, *, creates: bool) -> ServiceError:
    """What an error that AWS has answered means."""
    code, text = code_of(error)
    status = _status_of(error)
    if code in _THROTTLED or status == 429:
        wait = retry_after_seconds(_headers_of(error))
        return ServiceUnavailableError(SERVICE, f"AWS takes no more calls now ({code})", retry_after_seconds=wait)
    if status >= 500 or code in _OWN_FAULTS:
        return _no_answer(f"AWS failed ({code or status})", creates=creates)
    if code == "ResourceLimitExceeded":
        return _over_quota(text, status)
    if code in _BAD_CREDENTIALS:
        return ServiceRefusedError(SERVICE, f"AWS refuses the worker's credentials ({code}): {_REMEDY}", status=status)
    if code in _NO_RIGHT:
        action = _ACTION.search(text)
        what = f"the right to {action[1]}" if action else "a right"
        return ServiceRefusedError(
            SERVICE, f"the worker's credentials of AWS lack {what}: see the policy in docs/sagemaker.md", status=status
        )
    return ServiceRefusedError(SERVICE, f"{SERVICE} refuses the call ({code}): {without_values(text)}", status=status)


def explain_failure(error: Exception, *, creates: bool) -> ServiceError:
    """What it means that there was no answer. The error's own text is not passed on: it may hold parts of a key."""
    import botocore.exceptions as faults

    name = type(error).__name__
    not_sent = (faults.EndpointConnectionError, faults.ConnectTimeoutError, faults.ProxyConnectionError)
    if isinstance(error, not_sent):
        return ServiceUnavailableError(SERVICE, f"AWS is not reachable ({name})")
    if why := _CREDENTIALS.get(name):
        return ServiceRefusedError(SERVICE, f"{why}: {_REMEDY}", status=401)
    if "Credential" in name or "Token" in name or isinstance(error, faults.MetadataRetrievalError):
        return ServiceUnavailableError(SERVICE, f"the credentials of AWS could not be fetched ({name})")
    if isinstance(error, faults.HTTPClientError) or not isinstance(error, faults.BotoCoreError):
        return _no_answer(f"AWS did not answer ({name})", creates=creates)
    text = f"the call can't be made with these settings of AWS ({name}): check the region and AWS's own configuration"
    return ServiceRefusedError(SERVICE, text, status=400)


def without_values(text: str) -> str:
    """A text of AWS in one line, without what it may repeat of the request."""
    line = _LONG.sub("…", " ".join(text.split()))
    return line[:_MOST_TEXT]


def _over_quota(text: str, status: int) -> ServiceError:
    told = without_values(text)
    if _QUOTA_IS_ZERO.search(text):
        remedy = "ask for a higher one in the console under Service Quotas, Amazon SageMaker"
        return ServiceRefusedError(
            SERVICE, f"the account has no quota for this instance: {remedy} ({told})", status=status
        )
    if _QUOTA_OF_TIME.search(text):
        remedy = "lower LORA_WORKER_MAX_RUN_SECONDS, or ask AWS for a longer run time under Service Quotas"
        return ServiceRefusedError(
            SERVICE, f"the account's jobs may not run as long as ours: {remedy} ({told})", status=status
        )
    return ServiceUnavailableError(SERVICE, f"the account's quota of instances is used up ({told})")


def _no_answer(text: str, *, creates: bool) -> ServiceError:
    return LaunchInDoubtError(SERVICE, text) if creates else ServiceUnavailableError(SERVICE, text)


def _status_of(error: Any) -> int:
    status = (error.response.get("ResponseMetadata") or {}).get("HTTPStatusCode")
    return status if isinstance(status, int) and 400 <= status < 600 else 400


def _headers_of(error: Any) -> dict[str, str]:
    headers = (error.response.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
    return {str(name).lower(): str(value) for name, value in headers.items()}
