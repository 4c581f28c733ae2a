"""Makes a finished adapter callable by its name, before its manifest is uploaded. No training fails for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from lora_contract.protocol import Request
from lora_contract.serving import SERVING_FOLDER, Serving, whole_serving_name
from lora_trainer.errors import NotServedError
from lora_trainer.run.logs import describe
from lora_trainer.run.served_adapters import ServedAdapters
from lora_trainer.run.task import Outcome
from lora_trainer.run.volume import is_full_disk, mounted_volume
from lora_trainer.settings import Settings

log = logging.getLogger(__name__)

_MISSING = "The adapter can't be called by its name at an inference endpoint: "


def find_served_adapters(settings: Settings) -> ServedAdapters | None:
    """The folder from which vLLM serves; None where no network volume is mounted, on which alone it is of use."""
    volume = mounted_volume(settings.volume)
    folder = settings.serving_folder or (volume / SERVING_FOLDER if volume else None)
    return ServedAdapters(folder, int(settings.least_free_gb * 1e9)) if folder else None


async def serve(
    artifact: Path, outcome: Outcome, request: Request, settings: Settings, *, is_current: Callable[[], bool]
) -> None:
    """Put the adapter where vLLM finds it, if the worker asks for that, and note in the outcome where it lies.

    Whatever keeps it from there becomes a note for the user.

    Args:
        artifact: the folder that is published.
        outcome: gets `serving`, or a note.
        request: names the adapter.
        settings: name the folder.
        is_current: whether this execution is still the job's; asked in a thread, just before the adapter is put there.
    """
    name = request.output.serving_name
    served = find_served_adapters(settings)
    if name is None or served is None:
        return
    names = list(dict.fromkeys([name, whole_serving_name(request.job_id)]))
    try:
        name = await asyncio.to_thread(
            served.place, artifact, names, job_id=request.job_id, run_id=request.run_id, is_current=is_current
        )
    except NotServedError as error:
        outcome.summary.notes.append(f"{_MISSING}{error}")
    except OSError as error:
        log.warning("%s", describe(error))
        reason = "the network volume is full." if is_full_disk(error) else f"{type(error).__name__} on its volume."
        outcome.summary.notes.append(_MISSING + reason)
    else:
        outcome.serving = Serving(name=name, folder=str(served.folder / name))


async def withdraw(run_id: str, settings: Settings) -> None:
    """Remove what this run has put there: its job was cancelled. What is left is removed by the worker's errand."""
    served = find_served_adapters(settings)
    try:
        wrong = await asyncio.to_thread(served.remove, {run_id}) if served else {}
    except OSError as error:
        wrong = {run_id: describe(error)}
    for problem in wrong.values():
        log.warning("a cancelled run's adapter: %s", problem)
