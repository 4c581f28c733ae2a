"""How a training is fitted into the memory that is free on its GPU."""

from types import SimpleNamespace

import pytest
import torch

from lora_contract.batches import BatchShape
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import DoesNotFitError
from lora_trainer.models.attention import SDPA, VARLEN
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.shapes import known_config
from lora_trainer.recipe.setup import plan_passes

pytestmark = pytest.mark.gpu_stack

GPU = Hardware("cuda:0", torch.bfloat16)
TOTAL_BYTES = 85 * 10**9


@pytest.fixture
def passes(monkeypatch):
    """Plans Llama-3-8B with 4 rows a step on a GPU of which so many GB are free."""

    def plan(free_gb, *, begun=None, attention=VARLEN, hardware=GPU, **task):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gb * 10**9, TOTAL_BYTES))
        return plan_passes(
            SimpleNamespace(
                hyperparameters=Hyperparameters(),
                **{"micro_batch": None, "recompute": None, "quantization": None, "compile": "off", **task},
            ),
            config=known_config("meta-llama/Meta-Llama-3-8B-Instruct"),
            shape=BatchShape(10, 4, 2048, packed=True),
            hardware=hardware,
            attention=attention,
            gpu_name="H100",
            begun=begun,
        )

    return plan


def chosen(passes):
    return passes.quantization, passes.micro_batch, passes.recompute


def test_memory_that_another_process_holds_is_not_planned_with(passes):
    assert chosen(passes(84)) == ("bf16", 4, False)
    assert chosen(passes(24)) == ("nf4", 1, False)
    with pytest.raises(DoesNotFitError, match=r"H100 has 5.0 GB free"):
        passes(5)


def test_processes_after_memory_ran_out_hold_the_base_as_before(passes):
    assert chosen(passes(84, micro_batch=4, recompute=True)) == ("bf16", 4, True)
    assert chosen(passes(24, micro_batch=1, recompute=True)) == ("nf4", 1, True)
    assert chosen(passes(84, quantization="nf4")) == ("nf4", 4, False)


def test_user_is_told_where_an_earlier_attempt_cannot_be_resumed(passes):
    assert passes(84, begun="bf16").note is None
    assert chosen(passes(84, begun="nf4")) == ("nf4", 4, False)
    assert "began anew" in passes(16, begun="bf16").note
    assert passes(84, begun="bf16", quantization="nf4").note is None, "another note says that memory ran out"


def test_packed_rows_that_need_a_mask_go_through_one_by_one(passes):
    old = Hardware("cuda:0", torch.float16)
    assert chosen(passes(84, attention=SDPA, hardware=old)) == ("nf4", 1, False)
    assert chosen(passes(84, hardware=Hardware("cpu", torch.float32))) == ("nf4", 4, True)
