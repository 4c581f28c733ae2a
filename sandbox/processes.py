"""Child processes that never outlive the process that started them.

Each child leads a process group of its own, so that Ctrl-C in a terminal reaches only us and we stop
the servers in order. A SIGKILL of ours leaves no chance to do that; for this case one small warden
process waits on a pipe that breaks when we die, then ends the groups and removes the folders that
were handed to it. (Linux' parent-death signal would tie a child to the *thread* that started it.)
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import ChildFailedError

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
    """The process that cleans up after us when we can't."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def tell(self, line: str) -> None:
        with self._lock:
            # A fork of ours must not write into its parent's pipe: it has children of its own.
            if self._process is None or self._owner != os.getpid():
                self._process, self._owner = self._start(), os.getpid()
            assert self._process.stdin is not None
            # A warden that someone ended takes no orders; then the orderly way still works.
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
    """A running child process. `log` holds what it printed."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        """Send a signal to the process alone, not to its group; nothing happens when it has ended."""
        if self.returncode is None:
            self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, *, patience_seconds: float = 10) -> int:
        """Ask it to end, insist with SIGKILL on its group when patience is over; its exit status."""
        self.send(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_seconds)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL the whole group, so that nothing which the child started stays behind; exit status."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self.process.wait()
        _warden.tell(f"-group {self.pid}")
        return status

    def last_words(self, lines: int = 8) -> str:
        """The end of what it printed, for an error message."""
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
    """Start `command` as the leader of its own process group, its output going to `log`.

    Args:
        command: program and arguments; nothing passes through a shell.
        name: what messages call it.
        log: file for standard output and error, opened for appending.
        env: the whole environment; None inherits ours.
        cwd: working directory.
        account: user and group id to run under (only root may ask for it).
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


def temporary_folder(parent: Path | None = None) -> Path:
    """A new folder that is removed even when we are killed; `remove_folder` takes it away earlier.

    It lies in `parent`, or else where the machine keeps temporary files.
    """
    folder = Path(tempfile.mkdtemp(prefix="lora-sandbox-", dir=parent)).resolve()
    _warden.tell(f"+folder {folder}")
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder of `temporary_folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    _warden.tell(f"-folder {folder}")


def free_ports(count: int) -> list[int]:
    """That many different TCP ports of 127.0.0.1 that nobody listens on now."""
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
    """Wait for `ready()` while `child` lives.

    Raises:
        ChildFailedError: it ended first, or the deadline passed.
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
    """Whether something accepts connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
