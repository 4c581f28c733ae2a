"""The memory plan against what torch allocated, at the real widths of each kind of model."""

import pytest

from benchmarks.gpu.parts import LLAMA, QWEN_30B
from benchmarks.gpu.speed import Measurement, measure

pytestmark = pytest.mark.gpu

FEW = {"warm_up": 1, "steps": 2}


@pytest.mark.parametrize(
    "asked",
    [
        Measurement(LLAMA, layers=12, recompute=False, **FEW),
        Measurement(LLAMA, layers=12, recompute=False, lean=True, **FEW),
        Measurement(LLAMA, layers=12, recompute=True, micro_batch=2, **FEW),
        Measurement(LLAMA, layers=12, recompute=False, parameters={"dropout": 0.05}, **FEW),
        Measurement(LLAMA, layers=12, recompute=False, quantize=False, **FEW),
        Measurement(LLAMA, layers=12, attention="sdpa", **FEW),
        Measurement(QWEN_30B, layers=6, **FEW),
    ],
    ids=["kept", "lean", "recomputed", "dropout", "bf16", "masked", "experts"],
)
def test_the_planned_peak_is_what_torch_allocates(asked):
    found = measure(asked)
    planned, peak = found["plan"]["allocated_bytes"], found["peak_bytes"]
    print(f"planned {planned / 1e9:.2f} GB, allocated {peak / 1e9:.2f} GB: {planned / peak - 1:+.1%}")
    assert planned == pytest.approx(peak, rel=0.05)
