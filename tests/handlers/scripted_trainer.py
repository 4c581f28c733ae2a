"""Speaks the protocol of `lora_trainer.served`, and does what its job's `play` says; imports nothing heavy.

Each start is a line in the file that `starts` names. `play` is a list of one act a start; the last one goes on.
"""

import json
import os
import signal
import sys
import threading
import time


def main() -> int:
    pipe = os.fdopen(int(sys.argv[1]), "w")
    job = json.loads(sys.stdin.readline())
    given = job["input"]

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    with open(given["starts"], "a+") as file:  # noqa: PTH123
        file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        file.flush()
        file.seek(0)
        start = len(file.readlines())
    acts = given["play"]
    act = acts[min(start, len(acts)) - 1]
    print("the trainer prints", act, flush=True)

    def say(message: dict) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    say({"progress": {"stage": "training", "progress": 50, "current_step": 5, "current_epoch": 1, "metrics": {}}})
    if act == "complete":
        say({"result": {"run_id": given["run_id"], "status": "completed", "keys": sorted(os.environ)}})
    elif act == "fail":
        say({"result": {"run_id": given["run_id"], "status": "failed", "error": "The dataset is empty."}})
    elif act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "import":
        raise ModuleNotFoundError("No module named 'torch'")
    elif act == "linger":
        while True:
            time.sleep(60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
