"""Access tokens of Google Cloud, by Google's own chain of credentials (Application Default Credentials).

The chain: the file that GOOGLE_APPLICATION_CREDENTIALS names (a service account's key, or workload identity
federation), what `gcloud auth application-default login` has left, or the service account of the machine itself.
google-auth is imported when a token is needed first: it is an extra.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_worker.errors import ServiceError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.threads import in_thread

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_SERVICE = "Google Cloud"
_REQUEST_SECONDS = 20
_PAUSE_SECONDS = 15.0
"""After a failure Google is asked for a token again only then."""
_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_REMEDY = (
    "set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file, run `gcloud auth application-default login`, "
    "or run the worker on a machine of Google Cloud that has a service account"
)


class GoogleTokens:
    """The access token of the worker's identity, which is fetched again before it runs out. Safe side by side."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._credentials: Any = None
        self._lock, self._slot = asyncio.Lock(), asyncio.Semaphore(1)
        self._clock = clock
        self._problem: ServiceError | None = None
        self._silent_until = 0.0

    async def token(self) -> str:
        """A token that is valid for some minutes.

        Raises:
            ServiceRefusedError: there are no credentials, or Google refuses them.
            ServiceUnavailableError: Google's token service did not answer.
        """
        async with self._lock:
            if self._problem is not None and self._clock() < self._silent_until:
                # A try takes up to a minute, and every look at a run waits for it.
                raise self._problem.with_traceback(None)
            # Held here: while a token is fetched, a call of before may have its own forgotten.
            credentials = self._credentials
            if credentials is None or not credentials.valid:
                try:
                    credentials = await in_thread(functools.partial(self._refresh, credentials), self._slot)
                except ServiceError as error:
                    self._problem, self._silent_until = error, self._clock() + _PAUSE_SECONDS
                    raise
            self._credentials, self._problem = credentials, None
            return str(credentials.token)

    def forget(self, token: str) -> None:
        """Have the next token fetched anew, from credentials that are read again: this one was refused."""
        if self._credentials is not None and str(self._credentials.token) == token:
            self._credentials = None

    def _load(self, request: Any) -> Any:
        """The credentials, read by Google's own rules."""
        import google.auth

        return google.auth.default(scopes=list(SCOPES), request=request)[0]

    def _refresh(self, credentials: Any) -> Any:
        """The credentials with a new token; None: read first."""
        from google.auth import exceptions
        from google.auth.transport.requests import Request

        # Google's default is two minutes a try, in which no run of this worker would be looked at.
        request = functools.partial(Request(), timeout=_REQUEST_SECONDS)
        try:
            if credentials is None:
                credentials = self._load(request)
            credentials.refresh(request)
        except exceptions.DefaultCredentialsError:
            raise _refused(_why_none(os.environ.get(_VARIABLE))) from None
        except exceptions.GoogleAuthError as error:
            if isinstance(error, exceptions.TransportError) or error.retryable:
                text = f"Google's token service did not answer ({type(error).__name__})"
                raise ServiceUnavailableError(_SERVICE, text) from None
            # The error's own text may repeat parts of the key's file.
            raise _refused(f"Google refuses the worker's credentials ({type(error).__name__})") from None
        except (OSError, ValueError, TypeError) as error:
            raise _refused(f"the credentials of Google Cloud can't be read ({type(error).__name__})") from None
        return credentials


def _why_none(path: str | None) -> str:
    """Why Google's library finds no credentials; `path` is what the variable says."""
    if not path:
        return "there are no credentials of Google Cloud"
    try:
        with Path(path).open("rb"):
            return f"{_VARIABLE} names what is no key file of Google Cloud"
    except (OSError, ValueError) as error:
        return f"{_VARIABLE} names a file that can't be read ({type(error).__name__})"


def _refused(problem: str) -> ServiceRefusedError:
    return ServiceRefusedError(_SERVICE, f"{problem}: {_REMEDY}", status=401)
