"""Packed rows through attention that knows where examples begin, with the GPU's kernel played by the CPU."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_trainer.models import attention
from lora_trainer.models.attention import FLASH, SDPA, VARLEN, choose_attention, needs_mask
from lora_trainer.models.hardware import Hardware
from sandbox.tiny_architectures import tiny_config

pytestmark = pytest.mark.gpu_stack

LENGTHS = (5, 1, 30, 12)
GPU = Hardware("cuda:0", torch.bfloat16)


@pytest.fixture
def calls(monkeypatch):
    """Each call of the kernel; it computes example by example, in fp32."""
    seen = []

    def kernel(query, key, value, starts, longest, scale):
        seen.append((starts.tolist(), longest))
        rows = []
        for begin, end in pairwise(starts):
            one = [tensor[begin:end].transpose(0, 1)[None] for tensor in (query, key, value)]
            mixed = torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True, scale=scale, enable_gqa=True)
            rows.append(mixed[0].transpose(0, 1))
        return torch.cat(rows)

    monkeypatch.setattr(attention, "_kernel", kernel)
    return seen


def model_with(implementation):
    torch.manual_seed(0)
    config = tiny_config("llama", vocab_size=64)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).train()


def packed_batch():
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    ids = torch.randint(2, 64, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(positions[None] == 0, -100),
        "position_ids": positions[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
    }


def loss_and_gradient(model):
    loss = model(**packed_batch(), use_cache=False).loss
    loss.backward()
    return loss.item(), model.model.layers[0].self_attn.q_proj.weight.grad


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_rows_train_alike_with_start_positions_and_a_mask(calls, recompute):
    masked, started = model_with(SDPA), model_with(VARLEN)
    if recompute:
        started.gradient_checkpointing_enable({"use_reentrant": False})
    loss, slope = loss_and_gradient(started)
    wanted, wanted_slope = loss_and_gradient(masked)
    assert loss == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(slope, wanted_slope, atol=1e-5, rtol=1e-4)
    layers = started.config.num_hidden_layers
    assert calls == [([0, 5, 6, 36, 48], 30)] * layers * (2 if recompute else 1)


def test_row_of_one_example_needs_no_start_positions(calls):
    ids = torch.randint(2, 64, (2, 20))
    wanted = model_with(SDPA)(input_ids=ids).logits
    torch.testing.assert_close(model_with(VARLEN)(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4)
    assert calls == []


def test_padded_rows_are_refused():
    ids = torch.randint(2, 64, (2, 20))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with pytest.raises(ValueError, match="without padding"):
        model_with(VARLEN)(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize(
    ("hardware", "packed", "sliding", "flash", "chosen"),
    [
        (GPU, True, None, False, VARLEN),
        (GPU, True, None, True, VARLEN),
        (GPU, True, 4096, False, SDPA),
        (GPU, True, 4096, True, FLASH),
        (GPU, False, None, False, SDPA),
        (GPU, False, None, True, FLASH),
        (Hardware("cuda:0", torch.float16), True, None, True, SDPA),
        (Hardware("cpu", torch.float32), True, None, True, SDPA),
    ],
)
def test_fastest_correct_attention_is_chosen(monkeypatch, hardware, packed, sliding, flash, chosen):
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: flash)
    config = AutoConfig.for_model("mistral", sliding_window=sliding)
    assert choose_attention(config, hardware, packed=packed) == chosen
    assert needs_mask(chosen, packed=packed) == (packed and chosen == SDPA)
