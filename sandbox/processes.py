"""Starts child processes that never outlive this process.

Each child leads a process group of its own. So Ctrl-C in a terminal reaches only this process, which then stops its
servers in order. If this process is killed by SIGKILL, it can't do that. For this case it starts one small process,
the warden, which waits at a pipe that closes when this process dies. Then the warden ends the process groups and
removes the folders that it was told about. (Linux has a parent-death signal, but that is sent when the *thread* that
started the child ends.)
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import ChildFailedError

_FOREIGN = ("SUPABASE_", "RUNPOD_", "GPU_CLUSTER_", "LORA_")
_WARDEN = """
import os, shutil, signal, sys, time
groups, folders = set(), set()
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin:
    verb, _, argument = line.rstrip("\\n").partition(" ")
    if verb == "+group": groups.add(int(argument))
    if verb == "-group": groups.discard(int(argument))
    if verb == "+folder": folders.add(argument)
    if verb == "-folder": folders.discard(argument)
def end(signal_number):
    for group in groups:
        try: os.killpg(group, signal_number)
        except OSError: pass
if groups:
    end(signal.SIGTERM)
    time.sleep(0.5)
    end(signal.SIGKILL)
for folder in folders:
    shutil.rmtree(folder, ignore_errors=True)
"""


class _Warden:
    """The process that cleans up if this one is killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def tell(self, line: str) -> None:
        with self._lock:
            # A forked process needs a warden of its own: it must not write into the pipe of its parent.
            if self._process is None or self._owner != os.getpid():
                self._process, self._owner = self._start(), os.getpid()
            assert self._process.stdin is not None
            # If somebody has ended the warden, the orderly stop still works.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-S", "-E", "-c", _WARDEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        atexit.register(self._end, process)
        return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        if self._owner == os.getpid():
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()


_warden = _Warden()


@dataclass
class Child:
    """A running child process. `log` is the file with its output."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the child's process group."""
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        """Send a signal to the process but not to its group. Does nothing if the process has ended."""
        if self.returncode is None:
            self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, *, patience_seconds: float = 10) -> int:
        """Send a signal, and after `patience_seconds` SIGKILL to the whole group; returns the exit status."""
        self.send(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_seconds)
        return self.kill()

    def kill(self) -> int:
        """Send SIGKILL to the whole group, so that all processes of the child end; returns the exit status."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self.process.wait()
        _warden.tell(f"-group {self.pid}")
        return status

    def last_words(self, lines: int = 8) -> str:
        """Return the last lines of the child's output, for an error message."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def start_child(
    command: Sequence[str | Path],
    *,
    name: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    account: tuple[int, int] | None = None,
) -> Child:
    """Start a command as the leader of its own process group.

    Args:
        command: program and arguments; no shell is used.
        name: the name of the process in messages.
        log: the file to which standard output and error are appended.
        env: the whole environment; None inherits that of this process.
        cwd: the working directory.
        account: user and group id under which the command runs; only root may set it.
    """
    user, group = account or (None, None)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            user=user,
            group=group,
            extra_groups=None if account is None else [],
            start_new_session=True,
        )
    _warden.tell(f"+group {process.pid}")
    return Child(name=name, log=log, process=process)


def run_tool(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    account: tuple[int, int] | None = None,
    timeout_seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without input, and return its exit status and output as text.

    Args:
        command: program and arguments; no shell is used.
        env: the whole environment; None inherits that of this process.
        cwd: the working directory.
        account: user and group id under which the command runs; only root may set it.
        timeout_seconds: how long the command may run.

    Raises:
        subprocess.TimeoutExpired: the command did not end in time.
    """
    user, group = account or (None, None)
    return subprocess.run(  # noqa: S603
        [str(part) for part in command],
        env=env,
        cwd=cwd,
        user=user,
        group=group,
        extra_groups=None if account is None else [],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
    )


def own_environment() -> dict[str, str]:
    """Return this process's environment without the settings that a developer has made for a real project."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


def temporary_folder(parent: Path | None = None) -> Path:
    """Create a folder in `parent`, or among the machine's temporary files.

    `remove_folder` removes it; if this process is killed before, the warden does.
    """
    folder = Path(tempfile.mkdtemp(prefix="lora-sandbox-", dir=parent)).resolve()
    _warden.tell(f"+folder {folder}")
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder that `temporary_folder` has created."""
    shutil.rmtree(folder, ignore_errors=True)
    _warden.tell(f"-folder {folder}")


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Let only one process at a time be in here; the others wait. `lock` is a file for this purpose."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports of 127.0.0.1 that nobody is using now."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def wait_until(
    ready: Callable[[], bool],
    child: Child,
    *,
    deadline_seconds: float = 60,
    pause_seconds: float = 0.03,
) -> None:
    """Wait until `ready()` returns true.

    Raises:
        ChildFailedError: the child ended before, or the deadline passed.
    """
    deadline = time.monotonic() + deadline_seconds
    while not ready():
        if child.returncode is not None:
            raise ChildFailedError(
                f"{child.name} ended with status {child.returncode} before it answered. Its last words:\n"
                f"{child.last_words()}"
            )
        if time.monotonic() > deadline:
            raise ChildFailedError(
                f"{child.name} did not answer within {deadline_seconds:.0f} s. Its last words:\n{child.last_words()}"
            )
        time.sleep(pause_seconds)


def port_answers(port: int) -> bool:
    """Tell whether something accepts connections at 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
