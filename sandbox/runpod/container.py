"""The first process of a worker's container: when it ends, everything inside ends.

    python -S -E container.py COMMAND...

A killed SDK worker leaves its ping process behind, which goes on telling RunPod that the job is
alive, and a training child in a process group of its own. In a container the kernel ends them with
the first process; here this one does, by adopting every orphan (Linux' subreaper). SIGTERM, or the
end of COMMAND by any cause, kills all of them at once; SIGUSR1 passes a SIGTERM on to COMMAND.
Elsewhere than on Linux the process group must do.

Nothing but the standard library's quick parts: one of these starts with every worker.
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
    # The orphans of whom we kill become our children, so go on until there are none.
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
    os.killpg(0, signal.SIGKILL)


def _stop(*_: object) -> None:
    raise SystemExit


def main(command: list[str]) -> None:
    """Run `command`, then end whatever is left of it, this process included."""
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
