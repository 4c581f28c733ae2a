"""Compiled layers train alike and keep their names; they are compiled only where a training is long enough."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.gpu.speed import TINY
from benchmarks.gpu.weights import load_random, real_config
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.compiling import compile_layers, should_compile
from lora_trainer.models.experts import has_experts
from lora_trainer.models.fused import fuse
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import attach_lora
from lora_trainer.models.shapes import known_config

pytestmark = [
    pytest.mark.gpu_stack,
    pytest.mark.filterwarnings("ignore"),  # of torch itself, while it traces
]

SMALL = {**TINY, "num_hidden_layers": 2}
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
WEIGHTS = 8_030_000_000


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_and_slopes(model, tokens):
    ids = torch.randint(2, SMALL["vocab_size"], (2, tokens), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_train_alike_and_keep_their_names(recompute):
    torch.manual_seed(0)
    model = attach_lora(
        load_random(real_config(LLAMA, **SMALL), Hardware("cpu", torch.float32)), Hyperparameters()
    ).model
    fuse(model)
    model.train()
    if recompute:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    wanted = [loss_and_slopes(model, tokens) for tokens in (48, 33)]
    names = list(model.state_dict())
    counter = CompileCounterWithBackend("eager")
    assert compile_layers(model, counter) == SMALL["num_hidden_layers"]
    found = [loss_and_slopes(model, tokens) for tokens in (48, 33)]
    assert counter.frame_count > 0, "nothing was compiled"
    for (loss, slopes), (wanted_loss, wanted_slopes) in zip(found, wanted, strict=True):
        assert loss == pytest.approx(wanted_loss, rel=1e-6)
        for slope, wanted_slope in zip(slopes, wanted_slopes, strict=True):
            torch.testing.assert_close(slope, wanted_slope, atol=1e-6, rtol=1e-4)
    assert list(model.state_dict()) == names
    assert not any("_orig_mod" in name for name in names)
    assert len(model.get_nb_trainable_parameters()) == 2


@pytest.mark.parametrize(
    ("asked", "tokens", "has_experts", "compiles"),
    [
        ("off", 10**12, False, False),
        ("failed", 10**12, False, False),
        ("on", 1000, False, True),
        ("on", 10**12, True, False),
        ("auto", 90_000_000, False, False),
        ("auto", 100_000_000, False, True),
        ("auto", 10**12, True, False),
    ],
)
def test_only_a_training_of_two_hours_is_compiled(asked, tokens, has_experts, compiles):
    assert should_compile(asked, tokens=tokens, weights=WEIGHTS, has_experts=has_experts) is compiles


def test_mixtures_of_experts_are_known_by_their_configuration():
    assert [has_experts(known_config(name)) for name in (LLAMA, "Qwen/Qwen3-30B-A3B-Instruct-2507")] == [False, True]
