"""What the real training process prints: its stages and faults in its own words, and nothing of its dataset."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lora_trainer.run.child import TrainingChild
from lora_trainer.run.task import Outcome, Task
from tests.integration.trainer.child import make_task

pytestmark = pytest.mark.gpu_stack

SABOTAGED = "tests.integration.trainer.sabotaged"


async def printed(task: Task) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    child = TrainingChild(SABOTAGED, grace_seconds=30, on_progress=lambda _: None, on_line=lines.append)
    task.folder.mkdir(parents=True, exist_ok=True)
    return await child.train(task), lines


def words_of(dataset: Path) -> set[str]:
    return {word for word in dataset.read_text().replace('"', " ").split() if len(word) > 7 and word.isalpha()}


@pytest.mark.parametrize(
    ("sabotage", "status", "line"),
    [
        ("validation:6,5,4,3,2,1", "trained", "lora_trainer.run.progress_pipe INFO step 3 of 3: loss "),
        ("out_of_memory:10", "failed", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_real_training_logs_its_steps_and_faults_but_no_row(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, sabotage: str, status: str, line: str
) -> None:
    monkeypatch.setenv("SABOTAGE", sabotage)
    task = make_task(tmp_path, tiny_model, hyperparameters={"max_steps": 3}, micro_batch=1)
    outcome, lines = asyncio.run(printed(task))
    log = "\n".join(lines)
    assert outcome.status == status, log
    assert line in log, log
    assert "progress_pipe INFO loading_model" in log
    words = words_of(task.dataset)
    assert words
    assert {word for word in words if word in log} == set()
