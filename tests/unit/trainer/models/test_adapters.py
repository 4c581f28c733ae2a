"""An earlier adapter is put in exactly as it was saved, and one that doesn't fit is refused with one sentence."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import InitAdapterUnusableError
from lora_trainer.models.adapters import load_earlier_adapter
from lora_trainer.models.loading import attach_lora
from sandbox.tiny_architectures import tiny_config

pytestmark = pytest.mark.gpu_stack

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE = {"base_name": "org/base", "base_revision": "abc"}


def adapted(**parameters):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = tiny_config("llama", vocab_size=64)
    return attach_lora(AutoModelForCausalLM.from_config(config), Hyperparameters(rank=4, **parameters)).model


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def saved(tmp_path):
    """The folder of an adapter of rank 4 that has learned something, and its weights."""
    model = adapted()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = "org/base", "abc"
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    return tmp_path, weights_of(model)


def changed_config(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def changed_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_earlier_adapter_is_put_in_as_it_was_saved(saved):
    folder, weights = saved
    model = adapted()
    load_earlier_adapter(folder, model, **BASE)
    found = weights_of(model)
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 8}, "has rank 8, and this job 4"),
        ({"lora_alpha": 5}, "has alpha 5, and this job 8"),
        ({"use_dora": True}, "has use_dora True"),
        ({"base_model_name_or_path": "org/other"}, "was trained on org/other, and this job is for org/base"),
        ({"revision": "def"}, "revision def of the base"),
        ({"target_modules": ["q_proj"]}, "another target_modules"),
        ({"alpha_pattern": {"q_proj": 64}}, "another alpha_pattern"),
        ({"peft_type": "IA3"}, "another peft_type"),
        ({"modules_to_save": ["lm_head"]}, "another modules_to_save"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_adapter_of_another_shape_is_refused_with_one_sentence(saved, changes, words):
    folder, _ = saved
    changed_config(folder, **changes)
    with pytest.raises(InitAdapterUnusableError, match=words) as caught:
        load_earlier_adapter(folder, adapted(), **BASE)
    assert caught.value.hint


def first(tensors):
    return sorted(tensors)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(first(tensors)), "1 matrices of the earlier adapter are missing"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "1 matrices of the earlier adapter are missing, or"),
        (lambda tensors: tensors.update({first(tensors): torch.ones(2, 2)}), "or shapes"),
        (lambda tensors: tensors.update({n: t.to(torch.int8) for n, t in tensors.items()}), "or shapes"),
        (lambda tensors: tensors[first(tensors)].fill_(math.nan), "no finite numbers"),
        (lambda tensors: tensors[first(tensors)].fill_(math.inf), "no finite numbers"),
    ],
    ids=["missing", "extra", "shape", "integers", "nan", "infinite"],
)
def test_weights_that_do_not_fit_are_refused_with_one_sentence(saved, change, words):
    folder, _ = saved
    changed_weights(folder, change)
    with pytest.raises(InitAdapterUnusableError, match=words):
        load_earlier_adapter(folder, adapted(), **BASE)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"])
def test_damaged_weights_are_refused_with_one_sentence(saved, content):
    folder, _ = saved
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InitAdapterUnusableError, match="is damaged"):
        load_earlier_adapter(folder, adapted(), **BASE)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000], ids=["empty", "list", "bytes", "deep"])
def test_damaged_configuration_is_refused_with_one_sentence(saved, content):
    folder, _ = saved
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(InitAdapterUnusableError, match="not readable as JSON"):
        load_earlier_adapter(folder, adapted(), **BASE)
