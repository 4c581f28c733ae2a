"""The host of one machine: `python machine_host.py FOLDER COMMAND…` runs the command and writes down how it ended.

SIGTERM takes the machine away: the command is told, and killed a second later. Where the file `stay` lies beside the
folder the machine stays after its command, as a pod does, until it is taken away.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 1.0


def main() -> None:
    folder = Path(sys.argv[1])
    with (folder / "log.txt").open("wb") as log:
        command = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    taken = False

    def take_away(number: int, frame: object) -> None:
        nonlocal taken
        taken = True

    signal.signal(signal.SIGTERM, take_away)
    (folder / "host").write_text(f"{os.getpid()} {command.pid}")
    told_at = None
    while (status := command.poll()) is None:
        if taken and told_at is None:
            command.terminate()
            told_at = time.monotonic()
        if told_at is not None and time.monotonic() - told_at > GRACE_SECONDS:
            command.kill()
        time.sleep(0.02)
    while (folder.parent / "stay").exists() and not taken:
        time.sleep(0.02)
    (folder / "status").write_text(str(status))


main()
