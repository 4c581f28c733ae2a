"""The model of the sandbox's endpoint: adapters change it, are switched off without a trace, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_trainer.run.removed_adapter import write_zeros
from sandbox.inference.language_model import PeftModels, Sampling

pytestmark = pytest.mark.gpu_stack

ASKED = [{"role": "user", "content": "Should I pay down my mortgage?"}]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters `first` and `second`, which change every answer."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        # Random from the start, as if it had been trained.
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(base, config)
        model.peft_config["default"].base_model_name_or_path = str(tiny_model)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def model(tiny_model: Path) -> PeftModels:
    return PeftModels(tiny_model)


def said(model: PeftModels, adapter: int | None = None, **sampling: float) -> str:
    asked = Sampling(most_tokens=12, **{"temperature": 0, **sampling})
    return "".join(piece.text for piece in model.answer(model.prompt_of(ASKED), adapter, asked))


def test_adapters_take_turns_and_leave_the_base_as_it_was(model: PeftModels, adapters: Path) -> None:
    base = said(model)
    model.add_adapter(1, adapters / "first")
    model.add_adapter(2, adapters / "second")
    first, second = said(model, 1), said(model, 2)
    assert len({base, first, second}) == 3
    assert (said(model), said(model, 1), said(model, 2)) == (base, first, second)
    model.remove_adapter(1)
    assert (said(model), said(model, 2)) == (base, second)


def test_an_answer_ends_at_the_most_tokens_or_by_itself(model: PeftModels) -> None:
    prompt = model.prompt_of(ASKED)
    pieces = list(model.answer(prompt, None, Sampling(most_tokens=3, temperature=0)))
    assert [(piece.tokens, piece.finish_reason) for piece in pieces] == [(1, None), (2, None), (3, "length")]
    *_, last = model.answer(prompt, None, Sampling(most_tokens=400, temperature=0))
    assert last.finish_reason == "stop"


def test_chance_is_the_same_with_the_same_seed(model: PeftModels) -> None:
    assert said(model, temperature=1.5, seed=5) == said(model, temperature=1.5, seed=5)
    assert len({said(model, temperature=1.5, seed=seed) for seed in range(4)}) > 1


def renamed(adapters: Path, folder: Path, old: str, new: str) -> Path:
    """The first adapter with other names of its tensors."""
    (folder / "adapter_config.json").write_bytes((adapters / "first" / "adapter_config.json").read_bytes())
    weights = load_file(adapters / "first" / WEIGHTS)
    save_file({name.replace(old, new): tensor for name, tensor in weights.items()}, folder / WEIGHTS)
    return folder


def test_renamed_tensors_change_nothing_and_nobody_says_so(model: PeftModels, adapters: Path, tmp_path: Path) -> None:
    # vLLM's loudest fault in serving: lora/model_manager.py resets each module of which the file holds nothing.
    base = said(model)
    model.add_adapter(1, renamed(adapters, tmp_path, "self_attn", "attention"))
    assert said(model, 1) == base


def test_a_kind_of_module_without_lora_is_refused(model: PeftModels, adapters: Path, tmp_path: Path) -> None:
    # vLLM 0.33.0, lora/lora_model.py, check_unexpected_modules
    base = said(model)
    with pytest.raises(ValueError, match="carries no LoRA"):
        model.add_adapter(1, renamed(adapters, tmp_path, "q_proj", "query"))
    assert said(model) == base


def test_missing_weights_are_a_missing_file(model: PeftModels, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=WEIGHTS):
        model.add_adapter(1, tmp_path)


def test_the_zeros_in_place_of_a_removed_adapter_answer_as_the_base(
    model: PeftModels, adapters: Path, tmp_path: Path
) -> None:
    write_zeros(adapters / "first", tmp_path)
    base = said(model)
    model.add_adapter(1, tmp_path)
    assert said(model, 1) == base
