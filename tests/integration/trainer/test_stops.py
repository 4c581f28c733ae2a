"""Generation as the artifact's README tells it ends after the answer, whatever token the base alone would end with.

Each base here is made so that it goes on after its answer: it has learned whole conversations, as bases do that end at
the end of a text and not of a turn.
"""

import json
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lora_contract.hyperparameters import Hyperparameters
from lora_contract.protocol import FinalMetrics, Point
from lora_trainer.artifact.folder import save_artifact
from lora_trainer.artifact.model_card import ArtifactFacts
from lora_trainer.data.chat import Chat, prepare_tokenizer
from lora_trainer.recipe.methods import METHODS
from tests.processes.warm_python import run_module
from tests.project import ROOT
from tests.unit.trainer.tokenizers import tokenizer_with

pytestmark = pytest.mark.gpu_stack

FAMILIES = {
    # name: the tokenizer's end of text, the end token of the base's own settings, the template's stop
    "chatml": ("<|endoftext|>", "<|endoftext|>", "<|im_end|>"),
    "llama3": ("</s>", "</s>", "<|eot_id|>"),
    "gemma": ("</s>", "</s>", "<end_of_turn>"),
    "none": ("</s>", None, "</s>"),
}


def learn(model, tokenizer, *, steps, rate):
    """Have the model learn a whole conversation by heart, and what follows each answer."""
    turns = [{"role": "user", "content": "Go?"}, {"role": "assistant", "content": "Aye."}] * 2
    ids = torch.tensor([tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def facts_for(base, stop):
    return ArtifactFacts(
        base_name=str(base),
        base_revision=None,
        base_licence=None,
        dataset_sha256="0" * 64,
        training_examples=3,
        validation_examples=0,
        learns=METHODS["sft"].learns,
        unit=METHODS["sft"].unit,
        loss_unit=METHODS["sft"].loss_unit,
        parameters=Hyperparameters(),
        metrics=FinalMetrics(),
        steps=1,
        trainable=1,
        target_modules=("q_proj",),
        serving="",
        split={"training": [], "validation": []},
        own_template=False,
        stop=stop,
        dtype="float32",
        packed=False,
        attention="sdpa",
        quantization="nf4",
        compiled=False,
        warm_up_steps=0,
    )


def publish(folder, name):
    """A base and its adapter on disk, as a training leaves them; returns the folder of the adapter."""
    end_of_text, end_of_base, _ = FAMILIES[name]
    torch.manual_seed(0)
    tokenizer = tokenizer_with(name)
    tokenizer.eos_token = end_of_text
    prepare_tokenizer(tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    ends = None if end_of_base is None else tokenizer.convert_tokens_to_ids(end_of_base)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    learn(model, tokenizer, steps=50, rate=8e-3)
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    learn(adapted, tokenizer, steps=5, rate=1e-3)
    stop = Chat(tokenizer).rendering.stop
    point = Point(step=1, epoch=1.0, training_loss=1.0)
    facts = facts_for(folder / "base", stop)
    save_artifact(folder / "adapter", adapted, tokenizer, facts, points=[point])
    return folder / "adapter"


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each family's adapter answers, in one fresh process."""
    folders = [publish(tmp_path_factory.mktemp(name), name) for name in FAMILIES]
    asking = "tests.integration.trainer.asking"
    done = run_module("trainer", asking, *map(str, folders), environment=os.environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"as_told"')]
    return dict(zip(FAMILIES, lines, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_as_the_readme_shows_ends_after_the_answer(answers, name):
    assert answers[name]["as_told"] == f"Aye.{FAMILIES[name][2]}"
    # The settings of the base alone would not have ended there: this test can fail.
    assert answers[name]["careless"].startswith(f"Aye.{FAMILIES[name][2]}")
    assert len(answers[name]["careless"]) > len(answers[name]["as_told"])
