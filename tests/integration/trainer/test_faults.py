"""Faults while training: what the trainer does and reports."""

import math
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lora_contract.error_codes import ErrorCode
from lora_trainer.run.task import Retry
from tests.integration.trainer.child import make_task, train
from tests.integration.trainer.in_process import proven

pytestmark = pytest.mark.gpu_stack

SABOTAGED = "tests.integration.trainer.sabotaged"
FOUR_ROWS = {"packing": False, "merge_conversations": False, "batch_size": 4, "max_length": 128, "dropout": 0}


# Python 3.12 warns without the filter, and 3.11 has it only from 3.11.4 on.
_EXTRACTING: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def test_out_of_memory_halves_the_micro_batch_and_resumes(tmp_path, tiny_model):
    task = make_task(tmp_path, tiny_model, hyperparameters={**FOUR_ROWS, "epochs": 1})
    first, _ = train(task, SABOTAGED, SABOTAGE="out_of_memory:300")
    assert (first.status, first.error.code) == ("failed", ErrorCode.OUT_OF_MEMORY)
    assert first.retry == Retry(micro_batch=2, recompute=True)
    again = task.model_copy(update=first.retry.model_dump())
    second, _ = train(again, SABOTAGED, SABOTAGE="out_of_memory:300")
    assert second.status == "trained"
    assert second.summary.resumed_from_step == 2
    assert [point.step for point in second.points] == list(range(1, second.summary.total_steps + 1))
    assert any("2 rows at a time" in note for note in second.summary.notes)

    whole, _ = train(make_task(tmp_path / "whole", tiny_model, hyperparameters={**FOUR_ROWS, "epochs": 1}))
    assert whole.summary.total_steps == second.summary.total_steps
    for mended, plain in zip(second.points, whole.points, strict=True):
        assert math.isclose(mended.training_loss, plain.training_loss, rel_tol=1e-3), "the batch changed"


def test_out_of_memory_with_one_row_is_final_with_advice(tmp_path, tiny_model):
    task = make_task(tmp_path, tiny_model, hyperparameters=FOUR_ROWS, micro_batch=1)
    outcome, _ = train(task, SABOTAGED, SABOTAGE="out_of_memory:10")
    assert outcome.retry is None
    assert "max_length" in outcome.error.sentence()


@pytest.mark.fault(25)
def test_nan_loss_stops_with_the_step_and_advice(tmp_path, tiny_model):
    outcome, _ = train(make_task(tmp_path, tiny_model), SABOTAGED, SABOTAGE="no_number:3")
    assert outcome.error.code is ErrorCode.LOSS_NOT_FINITE
    assert "at step 3" in outcome.error.message
    assert "learning rate" in outcome.error.hint


def test_full_disk_is_named(tmp_path, tiny_model):
    task = make_task(tmp_path, tiny_model, checkpoint_minutes=1e-9)
    outcome, _ = train(task, SABOTAGED, SABOTAGE="full_disk:")
    assert outcome.error.code is ErrorCode.DISK_FULL
    assert "volume" in outcome.error.sentence()


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed here")
def test_missing_reporter_package_does_not_stop_the_training(tmp_path, tiny_model):
    task = make_task(tmp_path, tiny_model, hyperparameters={"max_steps": 1})
    outcome, _ = train(task, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert outcome.status == "trained", outcome.error
    assert any("MLFLOW_TRACKING_URI" in note for note in outcome.summary.notes)


def test_early_stopping_keeps_the_best_adapter_with_all_options(tmp_path, tiny_model):
    options = {
        "use_rslora": True,
        "use_dora": True,
        "neftune_noise_alpha": 5,
        "loraplus_lr_ratio": 4,
        "early_stopping_patience": 2,
        "scheduler": "constant",
        "epochs": 5,
    }
    task = make_task(tmp_path, tiny_model, hyperparameters=options, archive_name="adapter.tar.gz")
    outcome, _ = train(task, SABOTAGED, SABOTAGE="validation:6,5,4,4.5,4.6")
    assert outcome.status == "trained", outcome.error
    validation = {p.step: p.validation_loss for p in outcome.points if p.validation_loss is not None}
    assert list(validation.values()) == [5, 4, 4.5, 4.6]
    best = list(validation)[1]
    assert outcome.metrics.best_validation_loss == 4
    assert outcome.summary.total_steps == list(validation)[3]
    assert any("Stopped early" in note for note in outcome.summary.notes)
    assert any(f"that of step {best}" in note for note in outcome.summary.notes)
    assert any("vLLM refuses" in note and "merge in bf16" in note for note in outcome.summary.notes)
    assert "| validation loss before training | 6.0000 |" in (task.artifact / "README.md").read_text()
    assert "max-lora-rank" not in (task.artifact / "README.md").read_text()
    found = proven(task)
    assert (found.error, found.application.modules) == (None, 28)
    _check_archive(task, tiny_model, tmp_path / "deployed")


def _check_archive(task, base, deployed):

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tarfile.open(task.artifact / "adapter.tar.gz") as archive:
        assert {name.split("/")[0] for name in archive.getnames()} == {"adapter"}
        archive.extractall(deployed, **_EXTRACTING)
    # Neither the archive itself nor a file that the deployment ignores is part of it.
    published = {path.relative_to(task.artifact) for path in task.artifact.rglob("*") if path.is_file()}
    unpacked = {path.relative_to(deployed / "adapter") for path in deployed.rglob("*") if path.is_file()}
    assert unpacked == published - {Path("adapter.tar.gz")}
    assert not any(path.name.startswith(".") for path in unpacked)
    AutoTokenizer.from_pretrained(deployed / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), deployed / "adapter")
    assert model.peft_config["default"].r
