"""`lora-worker`, whose preflight dies of one dataset, as of one that no memory can hold."""

import os
import signal

from worker import preflight
from worker.cli import main
from worker.jobs import Assignment
from worker.preflight import Plan
from worker.services import Services

POISON = "poison"

_check = preflight.check


async def check(assignment: Assignment, services: Services) -> Plan:
    if assignment.dataset is not None and assignment.dataset.name == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return await _check(assignment, services)


if __name__ == "__main__":
    preflight.check = check
    main()
