"""What a training changes after memory ran out, one thing after the other."""

from types import SimpleNamespace

import pytest
import torch

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.recipe.next_try import Ending, failed_outcome, failure_of, next_try
from lora_trainer.run.task import Retry

pytestmark = pytest.mark.gpu_stack


def tries(asked, *, micro_batch, recompute, quantization):
    """All tries after memory ran out in each of them."""
    task = SimpleNamespace(
        micro_batch=None,
        recompute=None,
        quantization=None,
        compile="off",
        hyperparameters=Hyperparameters(quantization=asked),
    )
    setup = SimpleNamespace(micro_batch=micro_batch, recompute=recompute, quantization=quantization)
    while (retry := next_try(task, setup)) is not None:
        yield retry
        task.quantization = retry.quantization
        setup.quantization = retry.quantization or setup.quantization
        setup.micro_batch, setup.recompute = retry.micro_batch or micro_batch, retry.recompute or recompute


def test_memory_ladder_recomputes_then_halves_rows_then_quantises():
    assert list(tries("auto", micro_batch=3, recompute=False, quantization="bf16")) == [
        Retry(micro_batch=3, recompute=True),
        Retry(micro_batch=1, recompute=True),
        Retry(quantization="nf4"),
        Retry(micro_batch=3, recompute=True, quantization="nf4"),
        Retry(micro_batch=1, recompute=True, quantization="nf4"),
    ]


@pytest.mark.parametrize(("asked", "held"), [("auto", "nf4"), ("nf4", "nf4"), ("bf16", "bf16")])
def test_nothing_is_quantised_again_or_against_the_users_choice(asked, held):
    assert list(tries(asked, micro_batch=2, recompute=True, quantization=held)) == [
        Retry(micro_batch=1, recompute=True)
    ]


class Layer(torch.nn.Module):
    def forward(self, states):
        return states + 1


def test_training_goes_on_uncompiled_where_compiling_fails():
    def backend(graph, inputs):
        raise OSError("no C compiler")

    layer = Layer()
    layer.compile(backend=backend)
    with pytest.raises(RuntimeError) as caught:
        layer(torch.zeros(1, 2))
    ending = failure_of(caught.value)
    assert ending is Ending.NOT_COMPILED
    task = SimpleNamespace(fingerprint="f", micro_batch=2, recompute=True, quantization=None, compile="auto")
    outcome = failed_outcome(ending, task, SimpleNamespace(compiles=True))
    assert outcome.retry == Retry(micro_batch=2, recompute=True, compile="failed")
    assert failed_outcome(ending, task, SimpleNamespace(compiles=False)).retry is None, "it would fail again"


def test_other_errors_end_the_training():
    assert failure_of(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
    assert failure_of(torch.OutOfMemoryError("CUDA out of memory.")) is Ending.OUT_OF_MEMORY
