"""Two processes train as one would: the same losses, and each goes on where the other number of them left off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.run.task import Outcome, Task
from sandbox.tiny_architectures import tiny_config
from tests.integration.trainer.child import make_task, train
from tests.integration.trainer.in_process import trained
from tests.integration.trainer.test_preferences import PARAMETERS, lines_of

pytestmark = pytest.mark.gpu_stack

FORKED = "tests.integration.trainer.forked"
CHOSEN = {**PARAMETERS, "batch_size": 3, "epochs": 1, "learning_rate": 2e-3}
"""12 items in steps of 3 at most, the last of which are smaller: two processes never have the same number of them."""


def task_of(method: str, folder: Path, base: Path, count: int, **changes: Any) -> Task:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset").write_text("\n".join(map(json.dumps, lines_of(method)[:13])))
    chosen = {**CHOSEN, "method": method}
    task = make_task(folder, base, dataset=folder / "dataset", hyperparameters=chosen, gpus=[None] * count)
    return task.model_copy(update=changes)


def mixture_beside(tiny_model: Path, folder: Path) -> Path:
    """A mixture of experts with the tiny model's tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = tiny_config("qwen3_moe", vocab_size=len(tokenizer), **ends)
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mixture_task(folder: Path, base: Path, count: int, **changes: Any) -> Task:
    """A training by preferences whose LoRA is on every routed expert."""
    task = task_of("dpo", folder, base, count, **changes)
    chosen = task.hyperparameters.model_copy(update={"target_experts": True, "rank": 4})
    return task.model_copy(update={"hyperparameters": chosen})


def curve(outcome: Outcome) -> list[float | None]:
    return [
        value
        for point in outcome.points
        for value in (point.training_loss, point.validation_loss, point.gradient_norm, point.learning_rate)
    ]


def assert_same(several: Outcome, one: Outcome) -> None:
    assert len(one.points) == len(several.points)
    for here, there in zip(curve(several), curve(one), strict=True):
        assert here == (None if there is None else pytest.approx(there, rel=1e-4))
    assert several.evaluation is not None
    assert one.evaluation is not None
    assert several.evaluation.held_out.tuned.loss == pytest.approx(one.evaluation.held_out.tuned.loss, rel=1e-4)
    assert several.evaluation.general.base == one.evaluation.general.base


@pytest.fixture(scope="module")
def kto_alone(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Outcome:
    return trained(task_of("kto", tmp_path_factory.mktemp("kto"), tiny_model, 1))


@pytest.mark.parametrize("sharded", [False, True])
def test_kto_over_two_processes_equals_one(tmp_path: Path, tiny_model: Path, kto_alone: Outcome, sharded: bool) -> None:
    one = kto_alone
    # One row a pass: of a step with three, one process has a pass less, and gathers the layers beside the other's.
    two, _ = train(task_of("kto", tmp_path, tiny_model, 2, shard_base=sharded, micro_batch=1), FORKED)
    assert two is not None
    assert_same(two, one)
    assert any("Each held a part of the base" in note for note in two.summary.notes) == sharded
    assert (one.summary.gpus_used, two.summary.gpus_used) == (1, 2)
    assert any("Trained on 2 GPUs" in note for note in two.summary.notes)
    assert two.metrics.final_reward_accuracy == pytest.approx(one.metrics.final_reward_accuracy)
    assert (one.summary.pace, two.summary.pace) == (None, None)


def test_sharded_experts_learn_what_whole_ones_do(tmp_path: Path, tiny_model: Path) -> None:
    base = mixture_beside(tiny_model, tmp_path / "base")
    one = trained(mixture_task(tmp_path / "one", base, 1))
    two, _ = train(mixture_task(tmp_path / "two", base, 2, shard_base=True, micro_batch=1), FORKED)
    assert two is not None
    assert_same(two, one)
    assert any("Each held a part of the base" in note for note in two.summary.notes)


def test_training_goes_on_with_another_number_of_processes(tmp_path: Path, tiny_model: Path) -> None:
    one = trained(task_of("sft", tmp_path / "one", tiny_model, 1))
    shared = tmp_path / "two"
    failed, _ = train(task_of("sft", shared, tiny_model, 2), FORKED, HELPER_MEMORY_AT="2")
    assert failed is not None
    assert failed.retry is not None, failed.error
    assert (failed.error.code, failed.retry.micro_batch) == ("out_of_memory", 1)
    again = task_of("sft", shared, tiny_model, 2, **failed.retry.model_dump())
    stopped, _ = train(again, FORKED, LEADER_STOPS_AT="3")
    assert (stopped.status, "of 4" in stopped.error.message) == ("stopped", True)
    ended = trained(task_of("sft", shared, tiny_model, 1))
    assert ended.summary.resumed_from_step in (2, 3)
    assert_same(ended, one)
