"""A base is sharded layer by layer while it is loaded: each process gets its part of the bytes of the whole one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import core_model_loading
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import BaseModelMismatchError
from lora_trainer.models import loading
from lora_trainer.models.bases import Base
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import attach_lora, load_config, load_model
from lora_trainer.models.sharding import count_layers, sharding_layers
from lora_trainer.models.spreading import spread_layers
from sandbox.tiny_architectures import tiny_config

pytestmark = pytest.mark.gpu_stack

CPU = Hardware("cpu", torch.float32)
PROCESSES = 2
MOST_PARTS = 2 * 16
"""Of so many tensors one weight is made: those of the tiny model's experts, two of each."""


@pytest.fixture(scope="module", autouse=True)
def _first_of_two_processes() -> Iterator[None]:
    """The other one is not there: nothing is sent, and what is gathered is not looked at."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=["llama", "qwen3_next"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = tiny_config(request.param, vocab_size=256)
    config.num_hidden_layers = 2
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = kinds[-2:]  # those of Qwen3-Next are one of each kind
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="1MB")
    return Base(request.param, None, folder)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("quantize", [True, False])
def test_each_process_holds_its_part_of_the_same_bytes(base: Base, quantize: bool) -> None:
    config = load_config(base)
    whole = weights_of(load_model(base, config, CPU, quantize=quantize))
    model: Any = load_model(base, config, CPU, quantize=quantize, sharded=True)
    parts = weights_of(model)
    assert parts.keys() == whole.keys()
    for name, part in parts.items():
        assert isinstance(part, DTensor) == (".layers." in name), name
        own = part.to_local() if isinstance(part, DTensor) else part
        expected = whole[name].as_subclass(torch.Tensor)
        if isinstance(part, DTensor):
            expected = expected.chunk(PROCESSES)[0]
        assert torch.equal(own, expected), name


@pytest.mark.parametrize("quantize", [True, False])
def test_never_more_than_one_layer_is_whole(base: Base, quantize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    most, put, copy = [], core_model_loading.set_param_for_module, core_model_loading._materialize_copy
    copied, ahead = [], []

    def copy_and_note(*arguments: Any) -> torch.Tensor:
        copied.append(threading.current_thread())
        return copy(*arguments)

    def put_and_look(model: Any, *arguments: Any) -> None:
        put(model, *arguments)
        ahead.append(len(copied) - sum(ahead))
        held = weights_of(model).items()
        whole = {name.split(".")[2] for name, p in held if ".layers." in name and not (p.is_meta or is_part(p))}
        most.append(len(whole))

    def is_part(parameter: torch.Tensor) -> bool:
        return isinstance(parameter, DTensor)

    monkeypatch.setattr(core_model_loading, "set_param_for_module", put_and_look)
    monkeypatch.setattr(core_model_loading, "_materialize_copy", copy_and_note)
    model = load_model(base, load_config(base), CPU, quantize=quantize, sharded=True)
    layers, sharded = count_layers(model)
    assert layers == sharded == 2
    assert max(most) == 1
    # A weight comes to the device when it is put into its layer, and no thread brings others meanwhile.
    assert set(copied) == {threading.current_thread()}
    assert max(ahead) <= MOST_PARTS


class Layer(GradientCheckpointingLayer):
    """A layer with a buffer that its files have, and perhaps another layer in it."""

    def __init__(self, inner: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(4, 4, device="meta"))
        self.register_buffer("late", torch.zeros(4))
        self.inner = inner


def test_layer_with_one_in_it_and_a_late_buffer_is_sharded() -> None:
    model = torch.nn.Sequential(Layer(inner=Layer()))
    info: Any = core_model_loading.LoadStateDictInfo(set(), set(), set(), [], {}, set())
    with sharding_layers("cpu"):
        for name, value in (("weight", torch.ones(4, 4)), ("inner.weight", torch.ones(4, 4)), ("late", torch.ones(4))):
            core_model_loading.set_param_for_module(model, f"0.{name}", value, info, None)  # type: ignore[arg-type]
    assert count_layers(model) == (1, 1)
    assert torch.equal(model.get_buffer("0.late"), torch.ones(4))


def test_lora_on_a_sharded_base_is_that_on_a_whole_one(base: Base) -> None:
    parameters = Hyperparameters(rank=4)
    found = []
    for sharded in (False, True):
        model = load_model(base, load_config(base), CPU, sharded=sharded)
        torch.manual_seed(1)
        lora = attach_lora(model, parameters)
        found.append({name: p.detach().clone() for name, p in lora.model.named_parameters() if p.requires_grad})
    whole, part = found
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    assert count_layers(lora.model)[1] > 0


def test_a_base_that_lacks_weights_is_not_half_sharded(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "count_layers", lambda _: (2, 1))
    with pytest.raises(BaseModelMismatchError, match="1 layers of"):
        load_model(base, load_config(base), CPU, sharded=True)


@pytest.mark.parametrize("base", ["qwen3_next"], indirect=True)
def test_layers_spread_over_devices_answer_as_on_one(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers and accelerate take the two names of the processor for two devices, and attach their hooks.

    Tied weights can't be tried so: accelerate copies what says "cpu" to "cpu:0", and loses that it is a parameter.
    """
    # A tensor on "cpu:1" says "cpu". Weights that were loaded to a GPU say which, and accelerate leaves them there.
    monkeypatch.setattr("accelerate.utils.modeling.check_device_same", lambda *_: True)
    config = load_config(base)
    places = spread_layers(config, ["first", "second"])
    assert (places["model.layers.0"], places["model.layers.1"]) == ("first", "second")
    assert {place for name, place in places.items() if ".layers." not in name} == {"first"}
    tokens = torch.arange(8)[None]
    answers = []
    for devices in ([], ["cpu:0", "cpu:1"]):
        model = load_model(base, config, CPU, devices=devices)
        hooks = [module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook")]
        assert bool(hooks) == bool(devices)
        torch.manual_seed(1)
        lora = attach_lora(model, Hyperparameters(rank=4, target_experts=hasattr(config, "num_experts")))
        for parameter in lora.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        answers.append(lora.model(tokens).logits)
    assert torch.equal(*answers)
