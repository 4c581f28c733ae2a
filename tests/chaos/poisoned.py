"""`lora-worker`, whose preflight crashes on one dataset, as on one that does not fit into memory."""

import os
import signal

from lora_worker.commands.cli import main
from lora_worker.database.rows import Assignment
from lora_worker.datasets import preflight
from lora_worker.datasets.preflight import Plan
from lora_worker.launchers.places import Place
from lora_worker.services import Services
from tests.handlers.vertex_worker import redirect_logs

POISON = "poison"

_check = preflight.check


async def check(assignment: Assignment, services: Services, place: Place) -> Plan:
    if assignment.dataset is not None and assignment.dataset.name == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return await _check(assignment, services, place)


if __name__ == "__main__":
    preflight.check = check
    redirect_logs()
    main()
