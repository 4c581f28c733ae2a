"""A child process of an errand in which something is broken; `LORA_TEST_SABOTAGE` chooses what."""

import os
import shutil
import signal
import sys
import time
from collections import namedtuple

from lora_trainer.errands import fitness, prefetch

_LONGER_THAN_ANY_TEST_SECONDS = 3600
Usage = namedtuple("Usage", "total used free")


def raise_something():
    return str(1 // 0)


def main():
    sabotage = os.environ.get("LORA_TEST_SABOTAGE")
    if sabotage == "exit":
        os._exit(7)
    if free := os.environ.get("LORA_TEST_FREE_BYTES"):
        shutil.disk_usage = lambda _: Usage(0, 0, int(free))
        return prefetch.main(sys.argv[1:])
    broken = {
        "hang": lambda: time.sleep(_LONGER_THAN_ANY_TEST_SECONDS),
        "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "raise": raise_something,
    }[sabotage]
    fitness.checks_of = lambda settings: {"first": lambda: "Fine.", "second": broken, "third": lambda: "Fine."}
    return fitness.main(sys.argv[1:])


sys.exit(main())
