"""Changes the folder of served adapters: removes what runs have put there, and sets aliases."""

from __future__ import annotations

import logging
from collections.abc import Callable

from lora_contract.errands import ErrandResult, ServingRequest
from lora_trainer.errors import NotServedError, VolumeMissingError
from lora_trainer.run.served_adapters import ServedAdapters

log = logging.getLogger(__name__)


def change_served_adapters(request: ServingRequest, served: ServedAdapters | None) -> ErrandResult:
    """Do what the request asks for, each part whatever became of the others; asking again does no harm.

    Raises:
        VolumeMissingError: no network volume is mounted, on which there could be a folder of served adapters.
    """
    if served is None:
        raise VolumeMissingError(
            "No network volume is mounted, so nothing can be removed from the folder of served adapters.",
            "Attach the volume of the trainings to the endpoint again.",
        )
    wrong = served.remove(set(request.remove))
    result = ErrandResult(kind="serving", removed=[run for run in request.remove if run not in wrong])
    result.problems = list(dict.fromkeys(wrong.values()))
    for alias, name in request.aliases.items():
        problem = (
            _problem_of(served.remove_alias, alias) if name is None else _problem_of(served.set_alias, alias, name)
        )
        if problem is None:
            result.aliases.append(alias)
        else:
            result.problems.append(f"{alias}: {problem}")
    for problem in result.problems:
        log.warning("%s", problem)
    return result


def _problem_of(change: Callable[..., None], *names: str) -> str | None:
    """Make a change; the sentence that says why it was not made, or None."""
    try:
        change(*names)
    except NotServedError as error:
        return str(error)
    except OSError as error:
        return f"The folder can't be written ({type(error).__name__})."
    return None
