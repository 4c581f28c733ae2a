"""A model is the same whether its weights come from the base, read ahead, or from its quantised copy."""

import logging
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models import loading
from lora_trainer.models.bases import Base
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import attach_lora, copy_facts, load_config, load_model
from lora_trainer.models.quantised_cache import QuantisedCache
from sandbox.tiny_architectures import ARCHITECTURES, tiny_config

pytestmark = pytest.mark.gpu_stack

CPU = Hardware("cpu", torch.float32)
VOCABULARY = 512


def make_base(folder, architecture):
    torch.manual_seed(0)
    config = tiny_config(architecture, vocab_size=VOCABULARY)
    config.num_hidden_layers = 2
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = kinds[-2:]  # those of Qwen3-Next are one of each kind
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="1MB")
    return Base("tiny", None, folder)


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base", "qwen3_moe")


@pytest.fixture
def cache(tmp_path):
    with QuantisedCache(tmp_path, 10**9) as cache:
        yield cache


def load(base, cache=None, **options):
    model = load_model(base, load_config(base), CPU, cache=cache, **options)
    if cache is not None:
        cache.wait()
    return model


def train_briefly(model):
    """The losses of two steps, and the trained weights."""
    torch.manual_seed(1)
    lora = attach_lora(model, Hyperparameters(rank=4)).model.train()
    lora.enable_input_require_grads()
    trained = {name: p for name, p in lora.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for _ in range(2):
        ids = torch.randint(3, VOCABULARY, (1, 12))
        loss = lora(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach().clone() for name, p in trained.items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_quantised_copy_loads_and_trains_bit_by_bit_like_the_base(tmp_path, cache, caplog, monkeypatch, architecture):
    base = make_base(tmp_path / "base", architecture)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_reading_ahead", lambda *_: nullcontext())
        plain = load(base)
    written = load(base, cache)
    with caplog.at_level(logging.INFO):
        copied = load(base, cache)
    assert "was loaded from its quantised copy" in caplog.text
    for other in (written, copied):
        assert_same(plain.state_dict(), other.state_dict())
        assert_same(dict(plain.named_buffers()), dict(other.named_buffers()))
    assert plain.config.to_dict() == copied.config.to_dict()
    assert plain.generation_config.to_dict() == copied.generation_config.to_dict()
    losses, weights = train_briefly(plain)
    copied_losses, copied_weights = train_briefly(copied)
    assert losses == copied_losses
    assert_same(weights, copied_weights)


def weights_of_copy(tmp_path):
    (path,) = (tmp_path / "quantised-models").glob("*/model.safetensors")
    return path


def test_damaged_copy_gives_way_to_the_base_and_is_written_anew(tmp_path, base, cache, caplog):
    plain = load(base, cache).state_dict()
    path = weights_of_copy(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    assert_same(plain, load(base, cache).state_dict())
    assert "the quantised copy of tiny can't be loaded: DamagedWeightsError" in caplog.text
    assert weights_of_copy(tmp_path).read_bytes() == content


def test_copy_that_lacks_a_weight_gives_way_to_the_base(base, cache, caplog, monkeypatch):
    whole = loading.stored_tensors
    monkeypatch.setattr(loading, "stored_tensors", lambda model: dict(list(whole(model).items())[1:]))
    plain = load(base, cache).state_dict()
    assert_same(plain, load(base, cache).state_dict())
    assert "can't be loaded: ValueError" in caplog.text


def test_copy_whose_shapes_are_of_another_model_gives_way_to_the_base(base, cache, caplog, monkeypatch):
    whole = loading.stored_tensors
    monkeypatch.setattr(loading, "stored_tensors", lambda model: {n: t[: len(t) // 2] for n, t in whole(model).items()})
    plain = load(base, cache).state_dict()
    assert_same(plain, load(base, cache).state_dict())
    assert "can't be loaded" in caplog.text


def test_base_in_full_precision_has_no_copy(tmp_path, base, cache):
    model = load(base, cache, quantize=False)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not (tmp_path / "quantised-models").exists()


def test_models_with_code_of_their_own_have_no_copy(base):
    trusted = Base(base.name, None, base.folder, trusted=True)
    assert copy_facts(trusted, load_config(base), CPU) is None


def test_changed_files_of_a_plain_folder_have_another_copy(base):
    config = load_config(base)
    before = copy_facts(base, config, CPU)
    assert before == copy_facts(base, config, CPU)
    for change in ("config.json", "model.safetensors.index.json"):
        path = base.folder / change
        path.write_text(path.read_text() + " ")
    weights = sorted(base.folder.glob("*.safetensors"))[0]
    weights.write_bytes(weights.read_bytes())
    after = copy_facts(base, config, CPU)
    assert before["config"] != after["config"]
    assert before["files"] != after["files"]
    assert copy_facts(base, config, Hardware("cuda:0", torch.bfloat16)) != after
