"""How many adapters fit is reckoned from true sizes: of the weights, of the tokens, and of vLLM's slots."""

from __future__ import annotations

import pytest

from lora_contract.base_shapes import SHAPES
from lora_worker.deployment.adapter_memory import Room, room_for_adapters

LLAMA, MIXTURE, NEXT = (
    "meta-llama/Meta-Llama-3-8B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-Next-80B-A3B-Instruct",
)  # fmt: skip

# Billions of parameters, as the models' repositories tell them.
PARAMETERS = {
    "mistralai/Mistral-7B-Instruct-v0.2": 7.242, "mistralai/Mistral-7B-Instruct-v0.3": 7.248, LLAMA: 8.030,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32.764, "Qwen/Qwen2.5-0.5B-Instruct": 0.494,
    "Qwen/Qwen2.5-7B-Instruct": 7.616, "Qwen/Qwen3-8B": 8.191, MIXTURE: 30.532, NEXT: 79.674,
}  # fmt: skip


def room(base: str = LLAMA, *, memory: int = 80, gpus: int = 1, rank: int = 16, tokens: int = 8192) -> Room:
    found = room_for_adapters(base, memory_gb=memory, gpus=gpus, rank=rank, max_model_len=tokens)
    assert found is not None
    return found


@pytest.mark.parametrize("base", SHAPES)
def test_the_weights_of_each_known_base_have_their_true_size(base: str) -> None:
    assert room(base).weights_bytes / 2e9 == pytest.approx(PARAMETERS[base], rel=1e-3)


def test_a_slot_has_every_matrix_that_vllm_can_adapt() -> None:
    attention = 2 * (4096 + 4096) + 2 * (4096 + 1024)
    block = 3 * (4096 + 14336)
    ends = 2 * (4096 + 128256)
    assert room().slot_bytes == 2 * 16 * (32 * (attention + block) + ends)
    assert room(rank=64).slot_bytes == 4 * room().slot_bytes
    assert room().adapter_bytes == room(gpus=2).adapter_bytes == room().slot_bytes


def test_gpus_divide_one_side_of_each_matrix() -> None:
    by_output = (4096 + 4096 / 2) + 2 * (4096 + 1024 / 2) + 2 * (4096 + 14336 / 2)
    by_input = (4096 / 2 + 4096) + (14336 / 2 + 4096)
    ends = 2 * (4096 + 128256)
    assert room(gpus=2).slot_bytes == 2 * 16 * (32 * (by_output + by_input) + ends)


def test_tokens_take_their_keys_and_values_in_layers_with_full_attention() -> None:
    assert room().tokens_bytes == 4 * 8192 * 2 * 32 * 8 * 128 * 2
    assert room(gpus=2).tokens_bytes == room().tokens_bytes / 2
    assert room("Qwen/Qwen2.5-0.5B-Instruct", gpus=8).tokens_bytes == 4 * 8192 * 2 * 24 * 1 * 64 * 2
    assert room(NEXT, memory=180, gpus=2).tokens_bytes == 4 * 8192 * 2 * 12 * 1 * 256 * 2


def test_what_fits_fills_the_memory_and_one_more_does_not() -> None:
    for base, gpus in ((LLAMA, 1), (LLAMA, 2), (MIXTURE, 1), (MIXTURE, 4)):
        found = room(base, gpus=gpus)
        left = 80e9 * 0.9 - 3 * 2**30 - found.weights_bytes / gpus - found.tokens_bytes - found.fit * found.slot_bytes
        assert 0 <= left < found.slot_bytes, (base, gpus)


def test_a_small_card_holds_fewer_full_requests_before_it_holds_no_adapter() -> None:
    small = room(memory=24)
    assert (small.full_requests, small.fit > 0) == (2, True)
    assert 8192 * 2 < small.longest_tokens < 8192 * 3
    assert room(memory=24, tokens=20_000).fit == 0
    assert room(MIXTURE, memory=48).longest_tokens == 0
    assert room_for_adapters("org/unknown", memory_gb=80, gpus=1, rank=16, max_model_len=8192) is None
