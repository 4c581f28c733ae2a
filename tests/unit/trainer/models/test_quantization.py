"""Whether a base is held in 4 bits or not quantised, where a job leaves it open and where it doesn't."""

import pytest
import torch

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import DoesNotFitError, HyperparametersInvalidError
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.memory_plan import check_plan, format_plan
from lora_trainer.models.plan import plan_for_base, planners
from lora_trainer.models.quantization import begun_anew_note, choose_quantization
from lora_trainer.models.shapes import known_config

pytestmark = pytest.mark.gpu_stack

GPU = Hardware("cuda:0", torch.bfloat16)
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
QWEN_30B = "Qwen/Qwen3-30B-A3B-Instruct-2507"


@pytest.fixture(scope="module")
def fitted():
    """A function that fits 4 rows of 2,048 tokens of a model into so many GB, held as asked."""
    planner_of = {name: planners(known_config(name), Hyperparameters(), row_tokens=2048) for name in (LLAMA, QWEN_30B)}

    def fit(name, gigabytes):
        return lambda held: planner_of[name](held).fit(4, gigabytes * 10**9)

    return fit


def never(held):
    raise AssertionError("no plan is needed")


@pytest.mark.parametrize(
    ("model", "gigabytes", "chosen", "recompute"),
    [
        (LLAMA, 79, "bf16", False),
        (LLAMA, 44, "bf16", False),
        (LLAMA, 23, "nf4", False),
        (LLAMA, 15, "nf4", True),
        (QWEN_30B, 79, "bf16", False),
        (QWEN_30B, 64, "nf4", True),
        (QWEN_30B, 140, "bf16", False),
    ],
)
def test_open_choice_is_bf16_where_it_fits_and_forces_no_recomputing(fitted, model, gigabytes, chosen, recompute):
    plan_of = fitted(model, gigabytes)
    assert choose_quantization("auto", GPU, plan_of, gigabytes * 10**9) == chosen
    plan = plan_of(chosen)
    assert (plan.quantization, plan.recompute) == (chosen, recompute)
    assert plan.needed <= gigabytes * 10**9


@pytest.mark.parametrize("asked", ["nf4", "bf16"])
def test_choice_of_the_user_is_kept_whatever_fits(asked):
    assert choose_quantization(asked, GPU, never, 0, begun="nf4") == asked


def test_training_goes_on_as_an_earlier_attempt_began_if_that_fits(fitted):
    assert choose_quantization("auto", GPU, fitted(LLAMA, 79), 79 * 10**9, begun="nf4") == "nf4"
    assert choose_quantization("auto", GPU, fitted(LLAMA, 23), 23 * 10**9, begun="bf16") == "bf16"
    assert choose_quantization("auto", GPU, fitted(LLAMA, 15), 15 * 10**9, begun="bf16") == "nf4"
    assert begun_anew_note("bf16", "bf16") is begun_anew_note("bf16", None) is None
    assert "began anew, with the base in 4 bits" in begun_anew_note("nf4", "bf16")


def test_gpu_without_bf16_quantises_and_refuses_bf16_with_a_sentence(fitted):
    old = Hardware("cuda:0", torch.float16)
    assert choose_quantization("auto", old, fitted(LLAMA, 79), 79 * 10**9) == "nf4"
    with pytest.raises(HyperparametersInvalidError, match="this GPU can't compute in bf16"):
        choose_quantization("bf16", old, never, 0)


def test_bf16_that_does_not_fit_is_refused_with_its_remedy(fitted):
    plan = fitted(LLAMA, 15)("bf16")
    with pytest.raises(DoesNotFitError, match=r"weights 16.1 GB, not quantised.*L4 has 15.0 GB free") as refused:
        check_plan(plan, 15 * 10**9, "L4")
    assert "set quantization to nf4" in refused.value.as_protocol().sentence()


def test_unquantised_experts_are_planned_with_all_their_bytes(fitted):
    plan = fitted(QWEN_30B, 140)("bf16")
    assert plan.weight_bytes == plan.checkpoint_bytes
    assert plan.weights["experts, 16 bits"] == 2 * 48 * 128 * 3 * 2048 * 768
    assert plan.weights["quantisation constants"] == 0
    assert "base not quantised, activations kept" in format_plan(plan)


@pytest.mark.parametrize(
    ("asked", "gigabytes", "held"), [("auto", 80, "bf16"), ("auto", 16, "nf4"), ("nf4", 80, "nf4")]
)
def test_plan_of_a_base_says_how_the_trainer_holds_it(tmp_path, asked, gigabytes, held):
    plan = plan_for_base(
        LLAMA,
        Hyperparameters(quantization=asked),
        row_tokens=2048,
        micro_batch=1,
        volume=tmp_path,
        gpu_bytes=gigabytes * 10**9,
    )
    assert plan.quantization == held
