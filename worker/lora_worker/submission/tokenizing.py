"""Asks the trainer's own command how a base model's chat template renders a file, where the trainer is installed here.

The worker has no tokenizer and no template of its own. The command runs in a process of its own, since it imports
transformers and the two packages know nothing of each other.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from lora_contract.hyperparameters import Method
from lora_contract.lengths import Lengths
from lora_contract.words import shorten

_SECONDS = 600.0
_MAX_ANSWER_BYTES = 4_000_000
_MAX_REASON_CHARACTERS = 300


class TokenizerMissingError(Exception):
    """The lengths can't be counted here; the text says why, as a clause."""


def is_trainer_installed() -> bool:
    """Tell whether the trainer's command can run in this environment."""
    return all(importlib.util.find_spec(name) is not None for name in ("lora_trainer", "transformers"))


def count_lengths(file: Path, *, base_model: str, method: Method, max_length: int) -> Lengths:
    """Count the tokens of a file as the training will, and render its first examples.

    Raises:
        TokenizerMissingError: the trainer is not installed here, or can't find or use the base model's tokenizer.
    """
    if not is_trainer_installed():
        raise TokenizerMissingError("the trainer is not installed here (pip install '.[trainer]' in the clone)")
    command = [
        sys.executable, "-m", "lora_trainer.cli", "examples", str(file.absolute()),
        "--base", base_model, "--method", method, "--max-length", str(max_length),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise TokenizerMissingError(f"the tokenizer took longer than {_SECONDS:.0f} seconds") from None
    if done.returncode or len(done.stdout) > _MAX_ANSWER_BYTES:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise TokenizerMissingError(shorten(said[-1], _MAX_REASON_CHARACTERS).rstrip(".") if said else "it ended early")
    try:
        return Lengths.model_validate_json(done.stdout)
    except ValidationError:
        raise TokenizerMissingError("the trainer that is installed here is another version") from None
