"""Each method trains to an artifact: what is preferred gains, and a resumed training has the same numbers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_trainer.errors import StoppedError
from lora_trainer.recipe.preferences import REFERENCE_NAME
from lora_trainer.run.task import Outcome, Task
from tests.integration.trainer.child import make_task

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


class Progress:
    """Stands for the pipe to the handler: asks for a stop after a given step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.requested = False
        self._stop_after = stop_after

    def begin_stage(self, *_: Any) -> None:
        pass

    def end_step(self, point: Any, *_: Any, **__: Any) -> None:
        self.requested = point.step == self._stop_after

    def training_begins(self) -> None:
        pass


def task_of(method: str, folder: Path, base: Path, **changes: Any) -> Task:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset").write_text("\n".join(map(json.dumps, lines_of(method))))
    wanted = {**PARAMETERS, "method": method, **changes.pop("hyperparameters", {})}
    wanted = {name: value for name, value in wanted.items() if name != "beta" or method != "sft"}
    return make_task(folder, base, dataset=folder / "dataset", hyperparameters=wanted, **changes)


def trained(task: Task, *, stop_after: int | None = None) -> Outcome:
    """The training in this process, which spares importing torch for each."""
    from lora_trainer.models.quantised_cache import QuantisedCache
    from lora_trainer.recipe.train import train
    from lora_trainer.run.gpu import GpuMonitor

    progress: Any = Progress(stop_after)
    with QuantisedCache(task.volume, 0) as cache:
        return train(task, progress, progress, GpuMonitor(wanted=False), cache)


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
    assert outcome.metrics.final_reward_margin == margins[-1]
    assert outcome.metrics.final_reward_accuracy > 0.7
    assert outcome.metrics.best_validation_loss < {"dpo": math.log(2), "kto": 0.6}[method]
    assert outcome.summary.method == method


@pytest.mark.parametrize("method", METHODS)
def test_stopped_training_resumes_exactly_and_with_half_the_rows(whole, tmp_path, tiny_model, method):
    task = task_of(method, tmp_path, tiny_model, micro_batch=4)
    with pytest.raises(StoppedError):
        trained(task, stop_after=2)
    (checkpoint,) = task.checkpoints.glob("checkpoint-*")
    if method != "sft":
        kept = load_file(checkpoint / REFERENCE_NAME)["log_probs"]
        assert kept.shape == (15, 2)
    resumed = trained(task_of(method, tmp_path, tiny_model, micro_batch=4, checkpoint_minutes=1e-9))
    assert resumed.summary.resumed_from_step in {2, 3}
    assert curve(resumed) == curve(whole[method][1])


@pytest.mark.parametrize("method", METHODS)
def test_step_after_memory_ran_out_learns_the_same_in_halves(whole, tmp_path, tiny_model, method):
    with pytest.raises(StoppedError):
        trained(task_of(method, tmp_path, tiny_model, micro_batch=4), stop_after=2)
    resumed = trained(task_of(method, tmp_path, tiny_model, micro_batch=2, recompute=True))
    for found, wanted in zip(curve(resumed), curve(whole[method][1]), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4, nan_ok=True)


def test_artifact_of_each_method_loads_in_a_fresh_process(whole, tiny_model):
    code = (
        "import sys, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "base, *folders = sys.argv[1:]\n"
        "for folder in folders:\n"
        "    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)\n"
        "    ids = AutoTokenizer.from_pretrained(folder)('How do I save?', return_tensors='pt')['input_ids']\n"
        "    with torch.no_grad():\n"
        "        adapted = model(ids).logits\n"
        "        with model.disable_adapter():\n"
        "            print(float((adapted - model(ids).logits).abs().max()))\n"
    )
    folders = [str(whole[method][0].artifact) for method in METHODS]
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model), *folders], capture_output=True, text=True, check=True
    )
    assert all(float(line) > 1e-2 for line in ended.stdout.split()), ended.stdout
    assert len(ended.stdout.split()) == len(METHODS)


def test_model_card_says_how_it_was_trained(whole):
    card = (whole["dpo"][0].artifact / "README.md").read_text()
    assert "by DPO, on pairs of a better and a worse answer" in card
    assert "tags: [lora, qlora, dpo]" in card
    for row in (
        "| pairs trained on | 12 |",
        "| reward margin, last step |",
        "| unit of the losses | nats per pair |",
        "| beta | `0.2` |",
    ):
        assert row in card
