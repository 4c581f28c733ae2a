"""The handler's side of the machine's checks. A child process carries them out, since they load torch and the GPU.

A check that hangs, as a GPU in trouble makes it, can only be ended together with its process: then that check has
failed, and those after it are not made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lora_contract.child_processes import ending_of
from lora_contract.errands import MAX_CHECKS, FitnessCheck
from lora_trainer.errands.lines import Line
from lora_trainer.errors import UnfitError
from lora_trainer.run.child import ChildProcess
from lora_trainer.run.logs import print_line, secrets_of_environment
from lora_trainer.settings import Settings

_CHILD = "lora_trainer.errands.fitness"
_START = "start"
_START_SECONDS = 120
"""How long the process may take to its first check. It loads little, but from a disk that is cold."""


async def examine(settings: Settings, *, child: str = _CHILD) -> list[FitnessCheck]:
    """Make all checks, and return what each found. `child` is the module that makes them."""
    checks: list[FitnessCheck] = []
    running = ""
    ended = False

    def take(text: bytes) -> None:
        nonlocal running, ended
        line = Line.model_validate_json(text)
        deadline.reschedule(asyncio.get_running_loop().time() + settings.check_seconds)
        running = line.beginning or running
        ended = ended or line.result is not None
        if line.check is not None and len(checks) < MAX_CHECKS:
            checks.append(line.check)

    process = ChildProcess(
        child, grace_seconds=0, on_message=take, on_line=print_line, secrets=secrets_of_environment()
    )
    process.save_on_stop = False
    try:
        async with asyncio.timeout(_START_SECONDS) as deadline:
            status = await process.run(settings.model_dump_json())
    except TimeoutError:
        limit = f"{settings.check_seconds:.0f} seconds (LORA_TRAINER_CHECK_SECONDS)" if running else "two minutes"
        finding = f"It did not end within {limit}."
        return [*checks, FitnessCheck(name=running or _START, ok=False, finding=finding)]
    if not ended:
        finding = f"The checking process ended with {ending_of(status)} in this check."
        checks.append(FitnessCheck(name=running or _START, ok=False, finding=finding))
    return checks


def as_unfit(checks: Sequence[FitnessCheck]) -> UnfitError | None:
    """The error that names the failed checks; None if there is none."""
    failed = [check for check in checks if not check.ok]
    if not failed:
        return None
    return UnfitError(
        "This machine is not fit for training. " + " ".join(f"{check.name}: {check.finding}" for check in failed),
        "RunPod starts another worker. If each one fails, the endpoint's image, GPU type or volume is the reason.",
    )
