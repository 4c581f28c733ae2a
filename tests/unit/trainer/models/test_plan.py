"""The memory plan agrees with known models and with what loading really uses."""

import re

import pytest
import torch

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import DoesNotFitError
from lora_trainer.models.attention import SDPA, VARLEN
from lora_trainer.models.memory_plan import check_plan, format_plan
from lora_trainer.models.plan import Planner, plan_for_base, plan_memory
from lora_trainer.models.shapes import known_config
from lora_worker.configuration.settings import Settings
from lora_worker.money.speeds import load_throughput
from tests.project import ROOT

pytestmark = pytest.mark.gpu_stack

GB = 10**9


@pytest.fixture(scope="module")
def headline():
    """Qwen3-Next-80B-A3B at rank 16, 4,096 tokens, micro-batch 1: the defaults of its configuration."""
    from transformers import Qwen3NextConfig

    return plan_memory(Qwen3NextConfig(), Hyperparameters(rank=16), row_tokens=4096, micro_batch=1)


def test_qwen3_next_80b_fits_one_80_gb_gpu(headline):
    assert headline.weight_bytes <= 48 * GB
    assert headline.loading_peak <= 60 * GB
    assert headline.total <= 76 * GB
    assert headline.adapter_bytes <= 600e6
    assert headline.weights["experts, 4 bits"] == pytest.approx(77.31e9 / 2, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", 7.242),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.030),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.494),
        ("Qwen/Qwen2.5-7B-Instruct", 7.616),
        ("Qwen/Qwen3-8B", 8.191),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30.532),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 79.674),
    ],
)
def test_known_model_is_planned_offline_with_its_true_size(name, billions, tmp_path):
    plan = plan_for_base(name, Hyperparameters(), row_tokens=2048, micro_batch=1, volume=tmp_path)
    assert plan.checkpoint_bytes / 2e9 == pytest.approx(billions, rel=1e-3)
    assert not list(tmp_path.iterdir())


def test_model_that_does_not_fit_is_refused_with_figures(headline):
    with pytest.raises(DoesNotFitError) as caught:
        check_plan(headline, 48 * GB, "L40S")
    text = caught.value.as_protocol().sentence()
    assert "GB of GPU memory" in text
    assert "L40S has 48.0 GB" in text
    assert "max_length" in text
    assert "80 GB or more" in text
    check_plan(headline, 80 * GB, "A100")


def test_micro_batch_grows_with_the_free_memory():
    from transformers import Qwen3NextConfig

    planner = Planner(Qwen3NextConfig(), Hyperparameters(rank=16), row_tokens=4096)
    assert planner.fit(64, 48 * GB).needed > 48 * GB
    assert planner.fit(64, 56 * GB).micro_batch == 1
    assert 4 < planner.fit(64, 80 * GB).micro_batch < 20
    assert planner.fit(2, 180 * GB).micro_batch == 2


def test_packed_rows_without_flash_attention_include_their_mask():
    from transformers import MistralConfig

    def planned(attention, rows=1, **options):
        return plan_memory(
            MistralConfig(),
            Hyperparameters(),
            row_tokens=32_768,
            micro_batch=rows,
            attention=attention,
            **options,
        )

    mask = planned(SDPA).training["masks"]
    assert mask >= 3 * 32_768**2
    assert planned(SDPA).total - planned(VARLEN).total >= mask
    assert planned(SDPA, rows=2).training["masks"] == 4 * mask
    assert planned(SDPA, rows=2, packed=False).training["masks"] == 2 * mask, "padded rows see their own tokens"
    assert planned(SDPA, packed=False).training["masks"] == 0, "one row has no padding"


def test_the_table_names_every_part_and_the_verdict(headline):
    table = format_plan(headline, gpu_name="A100-80GB", gpu_bytes=80 * GB)
    for words in ("experts, 4 bits", "optimizer", "peak while loading", "adapter", "fits on A100-80GB"):
        assert words in table
    assert "DOES NOT FIT" in format_plan(headline, gpu_name="L4", gpu_bytes=24 * GB)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-Next-80B-A3B-Instruct"])
def test_passes_on_80_gb_are_long_enough_for_4_bit_experts(name):
    """Unpacking takes under a quarter of a step from 10,000 tokens a pass on (docs/performance.md)."""
    planner = Planner(known_config(name), Hyperparameters(), row_tokens=4096)
    assert planner.fit(3, 79 * GB).micro_batch == 3
    assert planner.fit(16, 80 * GB).micro_batch * 4096 > 50_000


@pytest.mark.parametrize("change", [{}, {"rank": 64}, {"use_dora": True}, {"target_experts": True}])
def test_planned_weights_equal_the_trained_ones(change):
    from lora_trainer.models.loading import attach_lora
    from sandbox.tiny_architectures import tiny_config

    architecture = "qwen3_next" if change.get("target_experts") else "llama"
    config = tiny_config(architecture, vocab_size=512)
    parameters = Hyperparameters(**change)
    plan = plan_memory(config, parameters, row_tokens=128, micro_batch=1)
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    assert attach_lora(model, parameters).trainable == plan.trainable


def test_least_memory_in_bf16_that_the_worker_knows_is_the_plans(tmp_path):
    known = load_throughput()["least_bf16_gb"]
    smallest = Hyperparameters(rank=4, quantization="bf16")
    assert list(known) == list(Settings.model_fields["base_models"].default)
    for name, gigabytes in known.items():
        plan = plan_for_base(name, smallest, row_tokens=64, micro_batch=1, volume=tmp_path)
        assert gigabytes == round(plan.needed / GB, 1), name


def test_part_of_a_base_that_the_worker_takes_for_shared_is_the_plans():
    table = load_throughput()
    assert list(table["layers_gb"]) == list(table["gathered_gb"]) == list(table["memory_gb"])
    for name, layers_gb in table["layers_gb"].items():
        planner = Planner(known_config(name), Hyperparameters(rank=16), row_tokens=4096)
        whole, half = planner.plan(1), planner.plan(1, shards=2)
        shared = 2 * (whole.weight_bytes - half.weight_bytes) / GB
        assert layers_gb == pytest.approx(shared, abs=0.01), name
        assert table["gathered_gb"][name] == pytest.approx(half.training["layers gathered"] / GB, abs=0.01), name


def test_documented_memory_table_matches_the_plan(tmp_path):
    page = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `(\S+/\S+)` \| ([\d.]+ GB .*) \|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == list(Settings.model_fields["base_models"].default)
    for name, cells in rows:
        short, long = (
            plan_for_base(name, Hyperparameters(rank=16), row_tokens=tokens, micro_batch=1, volume=tmp_path)
            for tokens in (2048, 4096)
        )
        in_bf16 = Hyperparameters(rank=16, quantization="bf16")
        unquantised = plan_for_base(name, in_bf16, row_tokens=4096, micro_batch=1, volume=tmp_path)
        assert cells.split(" | ") == [
            f"{short.weight_bytes / GB:.1f} GB",
            f"{short.loading_peak / GB:.1f} GB",
            f"{short.total / GB:.0f} GB",
            f"{long.total / GB:.0f} GB",
            f"{unquantised.total / GB:.0f} GB",
            f"{short.adapter_bytes / 1e6:.0f} MB",
            f"{short.checkpoint_bytes / GB:.0f} GB",
        ], name


@pytest.mark.parametrize("name", ["Qwen/Qwen3-Next-80B-A3B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"])
def test_base_that_fits_no_gpu_alone_fits_several(name):
    planner = Planner(known_config(name), Hyperparameters(), row_tokens=4096)
    alone = planner.plan(1)
    together = planner.plan(1, shards=4)
    free = alone.weight_bytes - 1
    assert alone.needed > free
    assert planner.fit(1, free, shards=4).needed <= free
    assert together.loading_peak < alone.weight_bytes // 2


def test_sharded_layers_take_their_share_and_two_that_are_whole():
    config = known_config("meta-llama/Meta-Llama-3-8B-Instruct")
    planner = Planner(config, Hyperparameters(), row_tokens=2048)
    whole, half = (planner.plan(1, shards=shards) for shards in (1, 2))
    layers = whole.weights["linear layers, 4 bits"]
    assert half.weights["linear layers, 4 bits"] == layers // 2
    assert half.training["layers gathered"] == 2 * layers // 32
    kept = sum(whole.weights.values()) - layers
    largest = whole.loading_peak - sum(whole.weights.values())
    assert half.loading_peak == kept + layers // 2 + layers // 32 + largest, "a layer is sharded when it is there"
    assert half.total < whole.total
