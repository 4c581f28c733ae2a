"""The plan against what `make gpu` measured on real cards, at the shapes of real models: docs/performance.md."""

import pytest

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.attention import SDPA
from lora_trainer.models.plan import Planner
from lora_trainer.models.shapes import known_config

pytestmark = pytest.mark.gpu_stack

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
QWEN_30B = "Qwen/Qwen3-30B-A3B-Instruct-2507"
DROPOUT = {"dropout": 0.05}
EIGHT_BIT = {"optimizer_bytes": 2}


@pytest.mark.parametrize(
    ("model", "rows", "recompute", "parameters", "options", "measured_gb"),
    [
        (LLAMA, 2, False, {}, {}, 51.02),
        (LLAMA, 1, False, {}, {}, 28.99),
        (LLAMA, 3, False, {}, {}, 73.25),
        (LLAMA, 2, False, {}, {"quantize": False}, 61.37),
        (LLAMA, 2, False, {}, EIGHT_BIT, 50.72),
        (LLAMA, 2, True, {}, {}, 10.28),
        (LLAMA, 1, False, DROPOUT, {}, 38.33),
        (LLAMA, 1, True, DROPOUT, {}, 8.86),
        (LLAMA, 1, False, {}, {"attention": SDPA}, 31.67),
        (LLAMA, 1, True, DROPOUT, {"attention": SDPA, **EIGHT_BIT}, 8.66),
        (QWEN_30B, 4, True, {}, {}, 24.86),
    ],
)
def test_planned_peak_is_within_5_percent_of_the_measured_one(model, rows, recompute, parameters, options, measured_gb):
    planner = Planner(known_config(model), Hyperparameters(**parameters), row_tokens=4096, **options)
    assert planner.plan(rows, recompute=recompute).allocated / 1e9 == pytest.approx(measured_gb, rel=0.05)
