"""Which checkpoints a later execution may resume from, and which of them are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_trainer.recipe.checkpoints import (
    CheckpointState,
    newest_checkpoint,
    remove_replaced_checkpoints,
    write_state,
)

pytestmark = pytest.mark.gpu_stack


@pytest.fixture
def saved(tmp_path: Path):
    """Saves a checkpoint of an execution."""

    def save(execution: str, step: int, fingerprint: str = "f", quantization: Any = "nf4") -> Path:
        folder = tmp_path / execution / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state_1.pth"):
            (folder / name).write_bytes(b"x" * step)
        write_state(folder, CheckpointState(fingerprint=fingerprint, step=step, quantization=quantization))
        return folder

    return save


def step_of(job_folder: Path) -> int | None:
    found = newest_checkpoint(job_folder, "f")
    return found.state.step if found else None


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_checkpoint_of_which_a_part_was_copied_is_passed_over(saved, tmp_path: Path, name: str) -> None:
    saved("e1", 10)
    newest = saved("e1", 20)
    # Another process of the same training may still have been writing its own.
    (newest / "rng_state_1.pth").write_bytes(b"more")
    assert step_of(tmp_path) == 20
    (newest / name).write_bytes(b"short")
    assert step_of(tmp_path) == 10
    (newest / name).unlink()
    assert step_of(tmp_path) == 10


def test_checkpoint_of_an_earlier_version_is_believed(saved, tmp_path: Path) -> None:
    folder = saved("e1", 10)
    (folder / "lora-trainer.json").write_text('{"fingerprint": "f", "step": 10}')
    assert step_of(tmp_path) == 10


def test_older_checkpoint_stays_until_two_new_ones_are_there(saved, tmp_path: Path) -> None:
    older, last, partial = saved("e1", 10), saved("e1", 20), saved("e1", 30)
    (partial / "optimizer.pt").unlink()
    foreign = saved("e2", 99, fingerprint="other")
    own = saved("e3", 21).parent
    remove_replaced_checkpoints(tmp_path, own, "f", "nf4")
    assert last.exists()
    assert not any(path.exists() for path in (older, partial, foreign.parent))
    # The first of its own has not arrived: the training goes on from before it.
    (own / "checkpoint-21" / "optimizer.pt").unlink()
    assert step_of(tmp_path) == 20
    remove_replaced_checkpoints(tmp_path, own, "f", "nf4")
    assert last.exists()
    saved("e3", 22), saved("e3", 23)
    remove_replaced_checkpoints(tmp_path, own, "f", "nf4")
    assert not last.parent.exists()
    assert step_of(tmp_path) == 23


def test_checkpoint_of_before_the_switch_to_4_bits_goes(saved, tmp_path: Path) -> None:
    saved("e1", 500, quantization="bf16")
    earlier, own = saved("e2", 9), saved("e3", 10).parent
    remove_replaced_checkpoints(tmp_path, own, "f", "nf4")
    assert step_of(tmp_path) == 10
    assert earlier.exists()
