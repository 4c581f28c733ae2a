"""Checks the machine before a job reaches it. `python -m lora_trainer.errands.fitness` is the handler's child process.

Each check is a function that returns a sentence with what it measured, or raises `UnfitError`. An exception of a
library is a failed check as well. What needs torch is imported by the check that needs it, so that a broken library
fails this check and not the process.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lora_contract.errands import ErrandResult, FitnessCheck
from lora_trainer.errands import machine
from lora_trainer.errands.lines import Line, Write, writer
from lora_trainer.errors import UnfitError
from lora_trainer.run.logs import configure_logging, describe
from lora_trainer.run.orphans import end_with_the_handler
from lora_trainer.run.volume import find_volume
from lora_trainer.settings import Settings

log = logging.getLogger("lora_trainer.errands.fitness")

Check = Callable[[], str]


def checks_of(settings: Settings) -> dict[str, Check]:
    """All checks, by name, in the order in which they are made: the fast ones first."""

    def on_the_gpu(name: str) -> Check:
        def check() -> str:
            from lora_trainer.errands import kernels

            return str(getattr(kernels, name)(needs_gpu=settings.needs_gpu))

        return check

    volume, least_bytes = find_volume(settings.volume), int(settings.least_free_gb * 10**9)
    return {
        "memory": machine.check_memory,
        "volume": lambda: machine.check_volume(volume),
        "disk": lambda: machine.check_disk([volume, Path("/tmp")], least_bytes),  # noqa: S108 only looked at
        "gpu": on_the_gpu("check_gpu"),
        "quantisation": on_the_gpu("check_quantisation"),
        "attention": on_the_gpu("check_attention"),
        "linear_attention": on_the_gpu("check_linear_attention"),
    }


def make_checks(checks: Mapping[str, Check], write: Write) -> None:
    """Make the checks one after the other, and write what each finds."""
    for name, check in checks.items():
        write(Line(beginning=name))
        try:
            finding = FitnessCheck(name=name, ok=True, finding=check())
        except UnfitError as error:
            finding = FitnessCheck(name=name, ok=False, finding=error.as_protocol().sentence())
        except Exception as error:
            log.error("%s: %s", name, describe(error))
            words = f"It failed ({type(error).__name__}: {str(error)[:300]}). The container's log has the details."
            finding = FitnessCheck(name=name, ok=False, finding=words)
        log.info("%s: %s %s", finding.name, "ok," if finding.ok else "FAILED,", finding.finding)
        write(Line(check=finding))
    write(Line(result=ErrandResult(kind="fitness")))


def main(arguments: list[str]) -> int:
    """Read the settings from standard input, check, and write to the file descriptor that the only argument names."""
    configure_logging()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    settings = Settings.model_validate_json(sys.stdin.readline())
    end_with_the_handler()
    with os.fdopen(int(arguments[0]), "w", encoding="utf-8") as pipe:
        make_checks(checks_of(settings), writer(pipe))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
