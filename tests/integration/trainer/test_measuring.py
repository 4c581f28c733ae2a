"""What the training measures of its base and its adapter, against plain transformers and PEFT."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_contract.evaluation import Measure
from lora_trainer.data.chat import IGNORED, Chat, Row
from lora_trainer.recipe import evaluation
from lora_trainer.recipe.passes import PassTrainer
from lora_trainer.run.held_out import HeldOut
from lora_trainer.run.task import InitAdapter, Outcome, Task
from tests.integration.trainer.child import make_task, train
from tests.integration.trainer.in_process import trained
from tests.integration.trainer.test_preferences import task_of

pytestmark = pytest.mark.gpu_stack

SHORT = {"quantization": "bf16", "max_steps": 2}
"""Not quantised, so that plain transformers finds the same."""


def measured(model: Any, rows: list[Row]) -> Measure:
    """What plain transformers finds: one row at a time."""
    losses, correct, tokens = 0.0, 0, 0
    for row in rows:
        labels = torch.tensor(row.labels[1:])
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1].float()
        learned = labels != IGNORED
        losses += torch.nn.functional.cross_entropy(logits[learned], labels[learned], reduction="sum").item()
        correct += int((logits[learned].argmax(-1) == labels[learned]).sum())
        tokens += int(learned.sum())
    return Measure(loss=losses / tokens, token_accuracy=correct / tokens, tokens=tokens)


def same(found: Measure, wanted: Measure) -> bool:
    print(found, wanted)
    close = found.loss == pytest.approx(wanted.loss, abs=2e-4)
    return close and found.token_accuracy == pytest.approx(wanted.token_accuracy) and found.tokens == wanted.tokens


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, tuple[Task, Outcome]]:
    """Two steps of several kinds of training, all on the same base."""
    counted: list[int] = []
    figures_of = PassTrainer._figures_of

    def counting(self: Any, rows: Any) -> Any:
        counted.extend(len(row.input_ids) for row in rows)
        return figures_of(self, rows)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassTrainer, "_figures_of", counting)
        task = task_of("sft", tmp_path_factory.mktemp("sft"), tiny_model, hyperparameters={**SHORT, "packing": None})
        found["packed"] = task, trained(task), list(counted)
    for name, method, changes in (("dora", "sft", {"use_dora": True}), ("dpo", "dpo", {}), ("continued", "sft", {})):
        options: dict[str, Any] = {"hyperparameters": {**SHORT, **changes}}
        if name == "continued":
            options["hyperparameters"]["init_adapter"] = "artifact-1"
            options["init_adapter"] = InitAdapter(id="artifact-1", base_model=str(tiny_model))
        task = task_of(method, tmp_path_factory.mktemp(name), tiny_model, **options)
        if name == "continued":
            shutil.copytree(found["packed"][0].artifact, task.init_adapter_folder)
        found[name] = task, trained(task), []
    return found


def test_base_is_the_base_alone_whatever_the_adapter_is(jobs, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    general = measured(base, evaluation.general_rows(Chat(tokenizer), tokenizer))
    for name, (task, outcome, _) in jobs.items():
        print(name)
        assert same(outcome.evaluation.general.base, general)
        rows = [Row(row.ids, row.labels, 1) for row in HeldOut.read(task.folder).rows]
        assert same(outcome.evaluation.held_out.base, measured(base, rows))


@pytest.mark.parametrize("name", ["packed", "dora", "dpo", "continued"])
def test_tuned_model_is_the_base_with_the_published_files(jobs, tiny_model, name):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    task, outcome, _ = jobs[name]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), task.artifact)
    handed = HeldOut.read(task.folder)
    wanted = measured(model.eval(), [Row(row.ids, row.labels, 1) for row in handed.rows])
    assert same(outcome.evaluation.held_out.tuned, wanted)
    assert same(handed.trained, wanted)
    assert outcome.evaluation.held_out.gain > 0


def test_each_model_reads_each_text_once(jobs, tiny_model):
    from transformers import AutoTokenizer

    task, outcome, counted = jobs["packed"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    general = [len(row.input_ids) for row in evaluation.general_rows(Chat(tokenizer), tokenizer)]
    held_out = [len(row.ids) for row in HeldOut.read(task.folder).rows]
    print(f"trained on {outcome.summary.pace.tokens} tokens, measured {sum(counted)}")
    assert sorted(counted) == sorted(2 * [*general, *held_out])


def test_adapter_is_saved_where_the_gpu_fails_after_the_last_step(tmp_path, tiny_model, monkeypatch):
    measure, calls = PassTrainer.measure, []

    def broken(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered (simulated)")

    def failing(self: Any, rows: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            # From here on the GPU's memory can't be read, so nothing more can be saved.
            monkeypatch.setattr("lora_trainer.recipe.train.save_artifact", broken)
            broken()
        return measure(self, rows)

    monkeypatch.setattr(PassTrainer, "measure", failing)
    task = task_of("sft", tmp_path, tiny_model, hyperparameters=SHORT)
    outcome = trained(task)
    assert outcome.status == "trained"
    assert outcome.evaluation is None
    assert any("could not be compared with its base" in note for note in outcome.summary.notes)
    assert (task.artifact / "adapter_model.safetensors").exists()
    assert "was not compared with its base" in (task.artifact / "README.md").read_text()


def test_stop_while_the_adapter_is_measured_saves_it_at_once(tmp_path, tiny_model):
    task = make_task(tmp_path, tiny_model, hyperparameters={"max_steps": 1})
    outcome, _ = train(task, "tests.integration.trainer.sabotaged", SABOTAGE="measuring:2")
    assert outcome.status == "trained", outcome.error
    assert outcome.evaluation is None
    assert any("about to be taken away" in note for note in outcome.summary.notes)
    assert (task.artifact / "adapter_model.safetensors").exists()
