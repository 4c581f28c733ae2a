"""The real training process on the GPU: killed, out of memory, with a broken loss."""

import signal

import pytest
import torch

from lora_contract.error_codes import ErrorCode
from tests.integration.trainer.child import make_task, train

pytestmark = pytest.mark.gpu

PARAMETERS = {"epochs": 2, "dropout": 0.1, "batch_size": 4, "max_length": 256}
ROWS = {"packing": False, "merge_conversations": False, "batch_size": 4, "max_length": 128, "dropout": 0, "epochs": 1}


def test_killed_run_resumes_with_the_same_losses(tmp_path, tiny_model):
    options = {"hyperparameters": PARAMETERS, "checkpoint_minutes": 1e-9}
    whole, _ = train(make_task(tmp_path / "whole", tiny_model, **options))
    assert whole.status == "trained", whole.error
    half = tmp_path / "half"
    none, child = train(make_task(half, tiny_model, **options), LORA_CRASH="trainer.train.step#5=kill")
    assert (none, child.process.returncode) == (None, -signal.SIGKILL)
    resumed, _ = train(make_task(half, tiny_model, **options))
    assert resumed.summary.resumed_from_step == 4
    off = max(abs(a.training_loss - b.training_loss) for a, b in zip(resumed.points, whole.points, strict=True))
    print(f"losses after the resume differ by at most {off:.1e}")
    assert off < 1e-2
    assert resumed.summary.gpu_type == torch.cuda.get_device_name(0)
    assert all(point.gpu_utilization is not None and point.gpu_memory_bytes for point in resumed.points)


def test_out_of_memory_halves_the_micro_batch_and_resumes(tmp_path, tiny_model):
    task = make_task(tmp_path, tiny_model, hyperparameters=ROWS)
    first, _ = train(task, "tests.gpu.sabotaged", SABOTAGE="300")
    assert (first.status, first.error.code) == ("failed", ErrorCode.OUT_OF_MEMORY)
    again = task.model_copy(update=first.retry.model_dump())
    second, _ = train(again, "tests.gpu.sabotaged", SABOTAGE="300")
    assert second.status == "trained", second.error
    assert second.summary.resumed_from_step == 2


def test_nan_loss_stops_the_training(tmp_path, tiny_model):
    outcome, _ = train(make_task(tmp_path, tiny_model), "tests.integration.trainer.sabotaged", SABOTAGE="no_number:3")
    assert outcome.error.code is ErrorCode.LOSS_NOT_FINITE
    assert "at step 3" in outcome.error.message


def test_training_lowers_the_loss_and_reports_its_gpu(tmp_path, tiny_model):
    outcome, _ = train(make_task(tmp_path, tiny_model, hyperparameters={"epochs": 4}))
    assert outcome.status == "trained", outcome.error
    assert outcome.metrics.final_training_loss < outcome.metrics.first_training_loss
    assert outcome.metrics.tokens_per_second > 0
