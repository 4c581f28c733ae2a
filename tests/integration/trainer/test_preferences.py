"""Each method trains to an artifact: what is preferred gains, and a resumed training has the same numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import InitAdapterUnusableError, StoppedError
from lora_trainer.recipe.preferences import REFERENCE_NAME
from lora_trainer.run.task import InitAdapter, Outcome, Task
from tests.integration.trainer.child import make_task
from tests.integration.trainer.in_process import trained
from tests.processes.warm_python import run_module
from tests.project import ROOT

pytestmark = pytest.mark.gpu_stack

PARAMETERS = {
    "learning_rate": 5e-3,
    "batch_size": 4,
    "epochs": 2,
    "max_length": 256,
    "rank": 8,
    "beta": 0.2,
    "validation_share": 0.2,
    "packing": False,
    "merge_conversations": False,
}
METHODS = ("sft", "dpo", "kto")


def lines_of(method: str) -> list[dict[str, Any]]:
    prompts = [f"How do I save {number * 7} coins?" for number in range(15)]
    good = [f"Put {number} coins aside each day, and wait." for number in range(15)]
    bad = [f"No idea. Ask somebody else, {number} times." for number in range(15)]
    if method == "dpo":
        return [{"prompt": p, "chosen": g, "rejected": b} for p, g, b in zip(prompts, good, bad, strict=True)]
    answers = [(g, True) if number % 3 else (b, False) for number, (g, b) in enumerate(zip(good, bad, strict=True))]
    return [
        {"prompt": prompt, "completion": answer, **({"label": up} if method == "kto" else {})}
        for prompt, (answer, up) in zip(prompts, answers, strict=True)
    ]


def task_of(method: str, folder: Path, base: Path, **changes: Any) -> Task:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset").write_text("\n".join(map(json.dumps, lines_of(method))))
    wanted = {**PARAMETERS, "method": method, **changes.pop("hyperparameters", {})}
    wanted = {name: value for name, value in wanted.items() if name != "beta" or method != "sft"}
    return make_task(folder, base, dataset=folder / "dataset", hyperparameters=wanted, **changes)


def curve(outcome: Outcome) -> list[tuple[Any, ...]]:
    return [
        (p.step, p.training_loss, p.validation_loss, p.gradient_norm, p.reward_margin, p.reward_accuracy)
        for p in outcome.points
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, tuple[Task, Outcome]]:
    """An uninterrupted training of each method."""
    found = {}
    for method in METHODS:
        task = task_of(method, tmp_path_factory.mktemp(method), tiny_model, micro_batch=4)
        found[method] = task, trained(task)
    return found


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preferred_answers_gain_on_the_others(whole, method):
    _, outcome = whole[method]
    margins = [p.reward_margin for p in outcome.points if p.reward_margin is not None]
    print(f"{method}: margins {margins[0]:.3f} … {margins[-1]:.3f}, accuracy {outcome.points[-1].reward_accuracy}")
    assert abs(margins[0]) < 1e-3, "before the first update the model is the reference"
    assert margins[-1] > 0.5
    held_out = outcome.metrics.final_reward_margin, outcome.metrics.final_reward_accuracy
    print(f"held out: margin {held_out[0]:.3f}, accuracy {held_out[1]}")
    assert held_out[0] > 0.5
    assert held_out[0] != margins[-1], "the answers that were not learned count"
    assert held_out[1] > 0.6
    assert outcome.metrics.best_validation_loss < {"dpo": math.log(2), "kto": 0.6}[method]
    assert outcome.summary.method == method


@pytest.mark.parametrize("method", METHODS)
def test_stopped_training_resumes_exactly_and_in_halves_alike(whole, tmp_path, tiny_model, method):
    task = task_of(method, tmp_path / "same", tiny_model, micro_batch=4)
    with pytest.raises(StoppedError):
        trained(task, stop_after=2)
    (checkpoint,) = task.checkpoints.glob("checkpoint-*")
    if method != "sft":
        assert load_file(checkpoint / REFERENCE_NAME)["log_probs"].shape == (15, 2)
    shutil.copytree(tmp_path / "same", tmp_path / "halved")
    resumed = trained(task_of(method, tmp_path / "same", tiny_model, micro_batch=4))
    assert resumed.summary.resumed_from_step in {2, 3}
    assert curve(resumed) == curve(whole[method][1]), "as if it had not stopped"
    assert resumed.evaluation == whole[method][1].evaluation
    assert resumed.metrics.model_copy(update={"tokens_per_second": None}) == whole[method][1].metrics.model_copy(
        update={"tokens_per_second": None}
    )
    # As after memory ran out: recomputed, with half the rows in a pass.
    halved = trained(task_of(method, tmp_path / "halved", tiny_model, micro_batch=2, recompute=True))
    for found, wanted in zip(curve(halved), curve(whole[method][1]), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4, nan_ok=True)


def beginning_with(whole: Any, folder: Path, base: Path, method: str, **parameters: Any) -> Task:
    """A task that begins with the adapter that was trained with sft."""
    wanted = {"init_adapter": "artifact-1", "epochs": 1, **parameters}
    adapter = InitAdapter(id="artifact-1", base_model=str(base))
    task = task_of(method, folder, base, hyperparameters=wanted, init_adapter=adapter)
    shutil.copytree(whole["sft"][0].artifact, task.init_adapter_folder)
    return task


def test_dpo_takes_the_adapter_it_begins_with_as_reference(whole, tmp_path, tiny_model):
    task = beginning_with(whole, tmp_path, tiny_model, "dpo")
    outcome = trained(task)
    assert abs(outcome.points[0].reward_margin) < 1e-3, "it begins where the reference is"
    assert outcome.points[0].training_loss == pytest.approx(math.log(2), abs=1e-3)
    assert outcome.points[-1].reward_margin > 0.1
    assert outcome.summary.init_adapter == "artifact-1"
    card = (task.artifact / "README.md").read_text()
    assert "The training began with the adapter `artifact-1`" in card
    earlier = load_file(task.init_adapter_folder / "adapter_model.safetensors")
    now = load_file(task.artifact / "adapter_model.safetensors")
    assert earlier.keys() == now.keys()
    assert any(not torch.equal(earlier[name], now[name]) for name in now)


def test_sft_goes_on_where_the_earlier_adapter_ended(whole, tmp_path, tiny_model):
    task = beginning_with(whole, tmp_path, tiny_model, "sft")
    outcome = trained(task)
    card = (task.artifact / "README.md").read_text()
    before = float(re.search(r"\| validation loss before training \| ([\d.]+) \|", card)[1])
    ended = whole["sft"][1].metrics.best_validation_loss
    print(f"held out: {ended:.4f} after the first training, {before:.4f} before the second")
    assert before == pytest.approx(ended, abs=0.02), "but for the rounding to bf16"
    assert outcome.metrics.best_validation_loss < before


def test_earlier_adapter_of_another_rank_is_refused(whole, tmp_path, tiny_model):
    with pytest.raises(InitAdapterUnusableError, match="has rank 8, and this job 16"):
        trained(beginning_with(whole, tmp_path, tiny_model, "dpo", rank=16))


def test_artifact_of_each_method_loads_in_a_fresh_process(whole, tiny_model):
    folders = [str(whole[method][0].artifact) for method in METHODS]
    module = "tests.integration.trainer.differing"
    ended = run_module("trainer", module, str(tiny_model), *folders, environment=os.environ, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert all(float(line) > 1e-2 for line in ended.stdout.split()), ended.stdout
    assert len(ended.stdout.split()) == len(METHODS)


def test_model_card_says_how_it_was_trained(whole):
    card = (whole["dpo"][0].artifact / "README.md").read_text()
    assert "by DPO, on pairs of a better and a worse answer" in card
    assert "tags: [lora, qlora, dpo]" in card
    for row in (
        "| pairs trained on | 12 |",
        "| reward margin, held out |",
        "| unit of the losses | nats per pair |",
        "| beta | `0.2` |",
    ):
        assert row in card


def test_method_of_the_architecture_page_trains(tmp_path, tiny_model, monkeypatch):
    from lora_trainer.data import chat, items, rows
    from lora_trainer.recipe.methods import METHODS, sft

    page = (ROOT / "docs" / "architecture.md").read_text()
    code = re.search(r"```python\n(def read_whole_text.*?)```", page, re.DOTALL)[1]
    names = {"Path": Path, "Sequence": Sequence, "Hyperparameters": Hyperparameters, "dataclasses": dataclasses}
    known = {**vars(chat), **vars(rows), **vars(items), **names, "sft": sft}
    exec(code, known)  # the page's own words
    monkeypatch.setattr("lora_trainer.recipe.setup.METHODS", {**METHODS, "sft": known["METHOD"]})
    task = task_of("sft", tmp_path, tiny_model, hyperparameters={"max_steps": 1})
    assert trained(task).status == "trained"
    assert "on whole conversations" in (task.artifact / "README.md").read_text()
