"""Ends a child process whose handler has died. It imports nothing but the standard library."""

from __future__ import annotations

import os
import signal
import sys
import threading


def end_with_the_handler() -> None:
    """Kill this process and its children as soon as its standard input ends, which means that the handler died.

    Otherwise the orphaned process would go on using the GPU while another execution trains the same run.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="handler-watch", daemon=True).start()
