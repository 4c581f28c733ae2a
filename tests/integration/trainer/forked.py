"""The real training process, whose helpers are forked instead of started: they have torch and its company loaded.

`HELPER_MEMORY_AT=3`: the helper's memory runs out in the third step. `LEADER_STOPS_AT=3`: the leader gets SIGTERM.
"""

import os
import signal
import sys
import threading
from contextlib import suppress

import torch
from transformers import Trainer

from lora_trainer.data import general
from lora_trainer.recipe import evaluation
from lora_trainer.recipe.train import main
from lora_trainer.run import helpers


class Forked:
    """A forked helper, with what is used of `subprocess.Popen`."""

    def __init__(self, pid, stdin):
        self.pid, self._stdin, self.returncode = pid, stdin, None
        self._waiting = threading.Lock()

    def wait(self, timeout=None):
        with self._waiting:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def poll(self):
        return self.returncode

    def kill(self):
        # As `Popen.kill`: the thread that waits may have taken the end, and not noted it yet.
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def fork(arguments, task, gpu):
    read_end, write_end = os.pipe()
    os.write(write_end, task.encode() + b"\n")
    if pid := os.fork():
        os.close(read_end)
        return Forked(pid, write_end)
    os.close(write_end)
    os.dup2(read_end, 0)
    sys.stdin = os.fdopen(0, closefd=False)
    Trainer.training_step = faulty("HELPER_MEMORY_AT", run_out_of_memory)
    os._exit(main(list(arguments)))


def run_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (simulated)")


def faulty(variable, fault, step=Trainer.training_step):
    def broken(self, *arguments, **options):
        if self.state.global_step + 1 == int(os.environ.get(variable, 0)):
            fault()
        return step(self, *arguments, **options)

    return broken


helpers.spawn = fork
evaluation.general_rows = lambda *arguments: general.general_rows(*arguments)[::10]

if __name__ == "__main__":
    Trainer.training_step = faulty("LEADER_STOPS_AT", lambda: os.kill(os.getpid(), signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
