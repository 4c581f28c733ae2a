"""Fill the network volume before the first job: `python -m lora_trainer.models.prefetch <model> [<model> …]`.

A model may carry a revision, `name@revision`. A download that broke off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lora_trainer.models.bases import BaseModels
from lora_trainer.errors import TrainingError
from lora_trainer.settings import Settings
from lora_trainer.run.volume import find_volume


def main(arguments: list[str] | None = None) -> int:
    """Download each model; 1 when one of them could not be had."""
    parser = argparse.ArgumentParser(prog="python -m lora_trainer.models.prefetch", description="Download base models.")
    parser.add_argument("models", nargs="+", metavar="model", help="as on huggingface.co, or name@revision")
    parser.add_argument("--volume", type=Path, help="default: the mounted network volume")
    options = parser.parse_args(arguments)
    volume = find_volume(options.volume or Settings().volume)
    models, failed = BaseModels(volume), 0
    for wanted in options.models:
        name, _, revision = wanted.partition("@")
        try:
            base = models.complete(models.find(name, revision or None))
            print(f"{base.name}{f' at {base.revision}' if base.revision else ''}: {base.folder}")
        except TrainingError as error:
            print(error.as_protocol().sentence(), file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
