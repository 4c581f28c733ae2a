"""A place is chosen for a job only if its GPUs can hold it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_worker.launchers.places import Place, Places
from lora_worker.money.places import unfit_places
from lora_worker.money.pricing import load_prices
from tests.scripted import FakeLauncher


@pytest.mark.parametrize(
    ("gpu_type", "asked", "reason"),
    [
        ("RTX-A4000", 2, "the training takes about 20.7 GB of each GPU, and each RTX-A4000 has 16"),
        ("L4", 2, None),
        ("L4", 1, "the training takes about 28 GB, and L4 has 24"),
        ("H100", 2, None),
        ("H100", 3, "it has 2 GPUs, and the job asks for 3"),
    ],
)
def test_several_gpus_need_room_for_their_part_each(gpu_type: str, asked: int, reason: str | None) -> None:
    places = Places(Place("a", cast(Any, FakeLauncher()), gpu_type, 2))
    chosen = Hyperparameters(base_model="deepseek-ai/DeepSeek-R1-Distill-Qwen-32B")
    unfit = unfit_places(places, chosen, GpuConfig(type=gpu_type, count=asked), load_prices())
    assert unfit == ({"a": reason} if reason else {})
