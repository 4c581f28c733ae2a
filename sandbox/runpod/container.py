"""Stands in for a worker's container: when this process ends, all processes that it has started end.

    python -S -E container.py COMMAND...

A killed SDK worker leaves processes behind: its ping process, which continues to report to RunPod that the job is
alive, and the training process, which has a process group of its own. In a real container the kernel ends them with
the first process. Here this process does, because it adopts every orphan (Linux: subreaper). When it gets SIGTERM, or
COMMAND ends for any reason, it kills all of them at once. When it gets SIGUSR1, it sends SIGTERM to COMMAND. On other
systems than Linux it kills only its process group.

It imports only fast parts of the standard library, because it is started with every worker.
"""

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_CHILD_SUBREAPER = 36


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")) if sys.platform == "linux" else ():  # noqa: PTH208
        try:
            with open(f"/proc/{name}/stat") as file:  # noqa: PTH123
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


def _end_everything() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The children of a killed process become children of this one, so repeat until there are none.
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
    os.killpg(0, signal.SIGKILL)


def _stop(*_: object) -> None:
    raise SystemExit


def main(command: list[str]) -> None:
    """Run `command`, then kill all its remaining processes and this one."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    _adopt_orphans()
    try:
        process = subprocess.Popen(command)  # noqa: S603
        signal.signal(signal.SIGUSR1, lambda *_: process.send_signal(signal.SIGTERM))
        while os.wait()[0] != process.pid:
            pass
    finally:
        _end_everything()


if __name__ == "__main__":
    main(sys.argv[1:])
