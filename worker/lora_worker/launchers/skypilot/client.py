"""SkyPilot's SDK in a process of its own, as the worker calls it.

In the worker's own process it would cost 157 MB and two seconds, and pin other versions of libraries than the worker
needs (docs/skypilot.md has the measurements). It also unpickles what the API server answers, and sends variables of its
environment there: so it sees nothing of the worker's, but the token for that server.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from lora_worker.configuration.extras import how_to_install

SDK_SCRIPT = Path(__file__).with_name("sdk.py")
INSTALL = f"{how_to_install('skypilot')}; or name a Python that has it in LORA_WORKER_SKYPILOT_PYTHON"

_MOST_ANSWER_BYTES = 4_000_000
_MOST_SIDE_BY_SIDE = 64
_PASSED_ON = (
    "PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip


class Problem(StrEnum):
    """Why a call has no value."""

    MISSING = "missing"
    """SkyPilot can't be imported there, or that Python can't be run."""
    UNAUTHORIZED = "unauthorized"
    UNREACHABLE = "unreachable"
    """Nothing was sent, or nothing was taken."""
    REFUSED = "refused"
    """The server or the SDK refuses this task; nothing was accepted."""
    CONTROLLER_STOPPED = "controller_stopped"
    """The server has no machine that looks after managed jobs, since none has run for a while."""
    IN_DOUBT = "in_doubt"
    """It may have been accepted."""
    FAILED = "failed"


class SkyError(Exception):
    """A call to SkyPilot failed. `text` is a short text of SkyPilot's own, without secrets."""

    def __init__(self, problem: Problem, text: str) -> None:
        super().__init__(text)
        self.problem, self.text = problem, text


class SkyClient:
    """One API server, through the SDK. The process is started by the first call, and ends with this object."""

    _shared: ClassVar[weakref.WeakValueDictionary[tuple[str, ...], SkyClient]] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, url: str, *, python: str = "", token: str = "", user: str = "") -> SkyClient:
        """The client of a server. Several endpoints of one server have one, and so one process of 157 MB."""
        key = (url, python, token, user)
        client = cls._shared.get(key)
        if client is None:
            client = cls._shared[key] = cls(url, python=python, token=token, user=user)
        return client

    def __init__(self, url: str, *, python: str = "", token: str = "", user: str = "") -> None:
        self._python = python or sys.executable
        self._own = {
            "SKYPILOT_API_SERVER_ENDPOINT": url,
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            # An unreachable server on this machine would otherwise be started anew, with other jobs than it had.
            "SKYPILOT_DISABLE_LOCAL_API_SERVER": "1",
            "SKYPILOT_USER": "lora-worker",
            **({"SKYPILOT_SERVICE_ACCOUNT_TOKEN": token} if token else {}),
            **({"SKYPILOT_USER_ID": user} if user else {}),
        }
        self._lock = threading.Lock()
        self._processes: list[_Process] = []
        """At most one, which takes calls. It is ended with this object, and at the latest with the worker."""
        weakref.finalize(self, _end_all, self._processes)

    async def call(self, call: str, /, *, seconds: float, **arguments: Any) -> Any:
        """Call one of `sdk.Calls`; what it returns, as JSON holds it.

        Raises:
            SkyError: it failed, or took longer.
        """
        process, number = await asyncio.to_thread(self._running), None
        try:
            async with asyncio.timeout(seconds):
                number, future = await asyncio.to_thread(process.send, call, arguments)
                return await asyncio.wrap_future(future)
        except TimeoutError:
            # What hangs once goes on hanging there: the next call gets a new process.
            process.is_over = True
            raise SkyError(Problem.IN_DOUBT, f"no answer within {seconds:.0f} s") from None
        finally:
            process.forget(number)

    def _running(self) -> _Process:
        with self._lock:
            if not self._processes or self._processes[0].is_over:
                self._processes[:] = [_Process.start(self._python, self._environment())]
            return self._processes[0]

    def _environment(self) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return {**passed, **self._own}


def _end_all(processes: list[_Process]) -> None:
    for process in processes:
        process.end()


class _Process:
    """The SDK's process, and the calls that wait for it."""

    def __init__(self, process: subprocess.Popen[bytes], home: tempfile.TemporaryDirectory[str]) -> None:
        self._process, self._home = process, home
        self._lock = threading.Lock()
        self._pending: dict[int, Future[Any]] = {}
        self._next = 0
        self._why = SkyError(Problem.IN_DOUBT, "SkyPilot's process ended before it answered")
        self.is_over = False
        threading.Thread(target=self._read, daemon=True, name="skypilot").start()

    @classmethod
    def start(cls, python: str, environment: Mapping[str, str]) -> _Process:
        """Start one. Raises: SkyError: that Python can't be run."""
        # A home of its own: the configuration and the logins of whoever started the worker are not meant.
        home = tempfile.TemporaryDirectory(prefix="lora-worker-skypilot-", ignore_cleanup_errors=True)
        try:
            process = subprocess.Popen(  # noqa: S603
                [python, str(SDK_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**environment, "HOME": home.name},
                cwd=home.name,
                start_new_session=True,
            )
        except OSError as error:
            home.cleanup()
            raise SkyError(Problem.MISSING, f"{python} can't be run ({error.strerror})") from None
        return cls(process, home)

    def send(self, call: str, arguments: dict[str, Any]) -> tuple[int, Future[Any]]:
        """Send a call; its number, for `forget`, and what will hold its value or a SkyError.

        Raises:
            SkyError: it was not sent.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self.is_over:
                raise self._why
            if len(self._pending) >= _MOST_SIDE_BY_SIDE:
                raise SkyError(Problem.UNREACHABLE, f"{len(self._pending)} calls wait for its answer already")
            self._next += 1
            self._pending[self._next] = future
            self._write({"id": self._next, "call": call, "arguments": arguments})
            return self._next, future

    def forget(self, number: int | None) -> None:
        """Nobody waits for this call any more. None: it could not be sent, since the process takes nothing."""
        if number is None and self.is_over:
            self.end()
            return
        with self._lock:
            if number is not None:
                self._pending.pop(number, None)
            is_done = self.is_over and not self._pending
        if is_done:
            self.end()

    def end(self) -> None:
        """End it now."""
        self.is_over = True
        self._process.kill()
        self._process.wait()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        # Where it has ended, the reader sees it, too, and knows why.
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            while line := lines.readline(_MOST_ANSWER_BYTES + 1):
                if len(line) > _MOST_ANSWER_BYTES or not self._take(line):
                    break
        self.end()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._home.cleanup()
        with self._lock:
            left = list(self._pending.values())
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(self._why)

    def _take(self, line: bytes) -> bool:
        """Take a line of the process; False where it is none."""
        try:
            message = json.loads(line)
            if "problem" in message:
                self._why = SkyError(Problem.MISSING, str(message["problem"]))
                return False
            if "ready" in message:
                return True
            number, error = message["id"], message.get("error")
            refusal = SkyError(Problem(error["kind"]), str(error["text"])[:400]) if error else None
            value = None if error else message["value"]
            with self._lock:
                future = self._pending.pop(number, None)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._why = SkyError(Problem.IN_DOUBT, "its answer can't be read")
            return False
        # Not where nobody waits for it any more.
        if future is not None and future.set_running_or_notify_cancel():
            future.set_exception(refusal) if refusal else future.set_result(value)
        return True
