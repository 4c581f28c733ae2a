"""Packed rows through attention that knows where examples begin, with the GPU's kernel played by the CPU."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

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

    def kernel(query, key, value, starts, longest, scale, window):
        seen.append((starts.tolist(), longest, window))
        rows = []
        for begin, end in pairwise(starts):
            one = [tensor[begin:end].transpose(0, 1)[None] for tensor in (query, key, value)]
            mask = torch.ones(int(end - begin), int(end - begin), dtype=torch.bool).tril()
            mask = mask if window is None else mask.triu(1 - window)
            mixed = torch.nn.functional.scaled_dot_product_attention(*one, mask, scale=scale, enable_gqa=True)
            rows.append(mixed[0].transpose(0, 1))
        return torch.cat(rows)

    monkeypatch.setattr(attention, "_kernel", kernel)
    return seen


def model_with(implementation, window=None):
    torch.manual_seed(0)
    config = tiny_config("mistral" if window else "llama", vocab_size=64)
    config.sliding_window = window
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


@pytest.mark.parametrize(("recompute", "window"), [(False, None), (True, None), (True, 7)])
def test_packed_rows_train_alike_with_start_positions_and_a_mask(calls, recompute, window):
    masked, started = model_with(SDPA, window), model_with(VARLEN, window)
    if recompute:
        started.gradient_checkpointing_enable({"use_reentrant": False})
    loss, slope = loss_and_gradient(started)
    wanted, wanted_slope = loss_and_gradient(masked)
    assert loss == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(slope, wanted_slope, atol=1e-5, rtol=1e-4)
    layers = started.config.num_hidden_layers
    assert calls == [([0, 5, 6, 36, 48], 30, window)] * layers * (2 if recompute else 1)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("lengths", [(20, 20), (20, 12)])
def test_rows_of_one_example_need_no_mask_even_if_they_are_padded(calls, window, lengths):
    ids = torch.randint(2, 64, (2, 20))
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(
        [
            {"input_ids": row[:length].tolist(), "labels": row[:length].tolist()}
            for row, length in zip(ids, lengths, strict=True)
        ]
    )
    real = batch["attention_mask"].bool()
    assert real.sum(1).tolist() == list(lengths)
    assert real[:, 0].all(), "padded on the right"
    found, wanted = (model_with(kind, window)(**batch) for kind in (VARLEN, SDPA))
    assert found.loss.item() == pytest.approx(wanted.loss.item(), abs=1e-5)
    torch.testing.assert_close(found.logits[real], wanted.logits[real], atol=1e-5, rtol=1e-4)
    assert calls == ([([0, 20, 40], 20, window)] * 4 if window else [])


def test_kernel_is_asked_for_a_window_only_where_rows_exceed_it(monkeypatch):
    asked = []

    def varlen_attn(query, *_, window_size, **__):
        asked.append(window_size)
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    attention._needs_enable_gqa.cache_clear()
    states, starts = torch.zeros(8, 2, 4), torch.tensor([0, 8])
    for window in (None, 9, 8, 3):
        attention._kernel(states, states, states, starts, 8, None, window)
    attention._needs_enable_gqa.cache_clear()
    assert asked == [(-1, 0), (-1, 0), (-1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("hardware", "architecture", "flash", "chosen"),
    [
        (GPU, "mistral", False, VARLEN),
        (GPU, "mistral", True, VARLEN),
        (GPU, "gemma2", False, SDPA),
        (GPU, "gemma2", True, FLASH),
        (Hardware("cuda:0", torch.float16), "mistral", True, SDPA),
        (Hardware("cpu", torch.float32), "mistral", True, SDPA),
    ],
)
def test_fastest_correct_attention_is_chosen(monkeypatch, hardware, architecture, flash, chosen):
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: flash)
    assert choose_attention(AutoConfig.for_model(architecture), hardware) == chosen
    for packed in (True, False):
        assert needs_mask(chosen, packed=packed) == (packed and chosen == SDPA)


def test_attention_of_cudnn_is_switched_off_for_a_training():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        attention.switch_off_cudnn()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
