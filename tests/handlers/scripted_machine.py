"""What a machine that was started for one run does instead of `lora_trainer.machine`: it plays what its request says.

Each start is a line in the file that `starts` names: its process, the launch's id, and the volume that it was given.
`play` is a list of one act a start; the last one goes on. Nothing heavy is imported.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from lora_contract.machine_request import find_launch_id, unpack_request


def main() -> int:
    given = unpack_request(os.environ)
    path = Path(given["starts"])
    with path.open("a") as file:
        file.write(f"{os.getpid()} {find_launch_id(os.environ)} {os.environ.get('LORA_TRAINER_VOLUME', '-')}\n")
    start = len(path.read_text().splitlines())
    act = given["play"][min(start, len(given["play"])) - 1]
    print("the machine plays", act, flush=True)
    if act == "fail":
        return 1
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "end":
        from lora_trainer.run.machine_end import await_end

        await_end(os.environ)
    if act == "linger":
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
