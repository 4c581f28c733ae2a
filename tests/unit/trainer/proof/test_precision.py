"""The base of a trial is held as most servers load it, where memory and time allow that."""

import pytest
import torch
from transformers import LlamaConfig

from lora_contract.application import Application
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.plan import Planner
from lora_trainer.proof import loading
from lora_trainer.proof.loading import choose_devices, choose_precision, precision_name
from lora_trainer.proof.trial import gap_notes
from lora_trainer.run.proof_task import ProofTask
from sandbox.standin_proof import applied

GPU = Hardware("cuda:0", torch.bfloat16)
TOKENS = 512
CONFIG = LlamaConfig(
    hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=2000
)
READ_SECONDS = 0.005
"""Reading this base takes less."""


def task(tmp_path, **changes) -> ProofTask:
    given = {"execution_id": "x", "job_folder": tmp_path, "folder": tmp_path, "volume": tmp_path}
    return ProofTask(**given, hyperparameters=Hyperparameters(), **changes)


@pytest.fixture
def free(monkeypatch):
    """Sets the GPU's free bytes: what the plan of one row needs, and a factor of that."""
    options = {"row_tokens": TOKENS, "packed": False, "dtype": torch.bfloat16, "quantize": False}
    needed = Planner(CONFIG, Hyperparameters(), **options).plan(1).needed + 2 * TOKENS * 2000 * 2

    def set_free(factor: float) -> None:
        monkeypatch.setattr(loading, "free_gpu_bytes", lambda: int(needed * factor))

    return set_free


@pytest.mark.parametrize(("factor", "held"), [(1.01, "bf16"), (0.99, "nf4")])
def test_base_is_not_quantised_where_the_plan_says_it_fits(tmp_path, free, factor, held):
    free(factor)
    assert choose_precision(task(tmp_path), CONFIG, GPU, tokens=TOKENS) == held


@pytest.mark.parametrize(
    ("in_4_bits", "train_seconds", "held"),
    [(True, 0.01, "nf4"), (True, 50 * READ_SECONDS, "bf16"), (False, 0.01, "bf16")],
)
def test_short_training_is_not_followed_by_long_reading(tmp_path, free, in_4_bits, train_seconds, held):
    free(2)
    short = task(tmp_path, trained_in_4_bits=in_4_bits, train_seconds=train_seconds)
    assert choose_precision(short, CONFIG, GPU, tokens=TOKENS) == held


@pytest.mark.parametrize(
    ("factor", "gpus", "held", "spread"),
    [(2, 4, "nf4", 0), (0.5, 1, "nf4", 0), (0.5, 2, "nf4", 2), (0.5, 4, "nf4", 3), (0.5, 4, "bf16", 0)],
)
def test_base_too_large_for_one_gpu_is_spread_over_those_that_trained(
    tmp_path, free, monkeypatch, factor, gpus, held, spread
):
    free(factor)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    devices = choose_devices(task(tmp_path, gpus=gpus), CONFIG, GPU, held, tokens=TOKENS)
    assert devices == [f"cuda:{number}" for number in range(spread)]


def test_second_try_holds_the_base_in_4_bits_whatever_fits(tmp_path, free):
    free(2)
    assert choose_precision(task(tmp_path, precision="nf4"), CONFIG, GPU, tokens=TOKENS) == "nf4"


def test_precision_is_told_by_its_name():
    assert precision_name("nf4", GPU) == "nf4"
    names = [precision_name("bf16", Hardware("cuda:0", dtype)) for dtype in (torch.bfloat16, torch.float16)]
    assert names == ["bf16", "fp16"]


@pytest.mark.parametrize(("served", "told"), [(1.2626, 1), (1.2624, 0), (1.2374, 1), (1.2376, 0), (None, 0)])
def test_gap_of_more_than_a_percent_is_told_with_both_losses(served, told):
    found = Application.model_validate({**applied("0" * 64), "trained_loss": 1.25, "served_loss": served})
    notes = gap_notes(found)
    assert len(notes) == told
    assert all("1.2500" in note and f"{served:.4f}" in note for note in notes)
