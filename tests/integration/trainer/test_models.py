"""The hardest architecture of `make models`, and what packing must not do."""

import pytest

pytestmark = pytest.mark.gpu_stack


def test_qwen3_next_trains_in_4_bits_and_reloads_identically():
    """Linear attention, fused and shared experts: loaded, trained, saved, reloaded in a fresh process."""
    from benchmarks.models import check

    row = check("qwen3_next")
    assert row.faults() == []
    assert row.experts == 8
    assert row.bytes_loaded < row.bytes_bf16 / 2
    # The peak while loading is the finished model and about one layer's experts, never the model in bf16.
    assert row.peak_loading < row.bytes_bf16 * 0.7


def test_packed_example_computes_like_a_single_one(tiny_model):
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.models.loading import load_config, load_model

    base = BaseModels(tiny_model.parent).find(str(tiny_model), None)
    model = load_model(base, load_config(base), detect_hardware()).eval()
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(3, 1000, (length,), generator=generator).tolist() for length in (37, 52))
    packed = {"input_ids": first + second, "labels": first + second, "seq_lengths": [len(first), len(second)]}
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([packed])
    del batch["labels"]
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits[0, len(first) :]
        alone = model(input_ids=torch.tensor([second]), use_cache=False).logits[0]
        leaking = model(input_ids=batch["input_ids"], use_cache=False).logits[0, len(first) :]
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(leaking, alone, atol=1e-1), "the test would not notice a leak"
