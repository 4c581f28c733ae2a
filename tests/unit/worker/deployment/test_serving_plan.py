"""The endpoint that answers has room for the adapters that there are, and refuses what vLLM would get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_worker.deployment.adapter_memory import room_for_adapters
from lora_worker.deployment.file import parse_specification
from lora_worker.deployment.fleet import FinishedAdapters
from lora_worker.deployment.planning import plan_deployment
from lora_worker.deployment.releasing import ALIASES_AT
from lora_worker.deployment.resources import GpuType
from lora_worker.deployment.serving_plan import Adapters, answering_endpoint, dropped_note, plan_adapters
from lora_worker.deployment.specification import Specification
from lora_worker.deployment.survey import Survey
from lora_worker.errors import DeploymentError, DeploymentFileError
from tests.unit.worker.deployment.fake_account import CATALOG

LLAMA, MIXTURE = "meta-llama/Meta-Llama-3-8B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507"
SET = {
    ALIASES_AT: "noon",
    "VLLM_EXTRA_ARGS": """--seed 3 --lora-modules '{"name":"bot","path":"org/bot"}' '{"name":"cat","path":"/cat"}'""",
}
"""Variables that commands and RunPod's console have set."""
SURVEY = Survey(gpu_types=tuple(GpuType.model_validate(gpu) for gpu in CATALOG))
TEXT = """name = "trainer"
image = "ghcr.io/me/trainer:1"
base_models = ["%s"]
%s
[inference]
%s
[inference.gpu]
pools = ["AMPERE_80"]
%s
"""
VOLUME = '[[volumes]]\nname = "models"\nsize_gb = 50\ndata_center = "EU-RO-1"'


def file(base: str = LLAMA, table: str = "", gpu: str = "", *, volumes: str = VOLUME, top: str = "") -> Specification:
    return parse_specification(TEXT % (base, top, table, gpu) + volumes, Path("deploy.toml"))


def made(adapters: int, rank: int = 16, base: str = LLAMA, *, use_dora: bool = False) -> FinishedAdapters:
    return FinishedAdapters(base_model=base, rank=rank, use_dora=use_dora, adapters=adapters)


def planned(specification: Specification, *fleet: FinishedAdapters) -> Adapters:
    found = plan_adapters(specification, fleet, SURVEY)
    assert found is not None
    return found


def refused(specification: Specification, *fleet: FinishedAdapters) -> str:
    with pytest.raises(DeploymentError) as caught:
        plan_adapters(specification, fleet, SURVEY)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("finished", "rank", "expected"),
    [(0, 4, (16, 4, 4)), (3, 16, (16, 4, 4)), (5, 20, (32, 8, 8)), (30, 64, (64, 8, 23)), (500, 16, (16, 8, 64))],
)
def test_ranks_and_numbers_come_from_the_finished_adapters(finished: int, rank: int, expected: Any) -> None:
    adapters = planned(file(), *([made(finished, rank)] if finished else []))
    assert (adapters.max_lora_rank, adapters.max_loras, adapters.max_cpu_loras) == expected
    assert adapters.finished == finished


def test_what_the_file_says_comes_before_what_there_is() -> None:
    table = "max_lora_rank = 48\nmax_loras = 12\nmax_cpu_loras = 100"
    adapters = planned(file(table=table), made(3, 128), made(2, 16))
    assert (adapters.max_lora_rank, adapters.max_loras, adapters.max_cpu_loras) == (64, 12, 100)
    assert "3 finished adapters of" in adapters.notes[0]
    assert "can't be called: inference.max_lora_rank is 64" in adapters.notes[0]


def test_fewer_slots_are_taken_where_no_more_fit() -> None:
    adapters = planned(file(MIXTURE), made(7, base=MIXTURE))
    assert adapters.room == room_for_adapters(MIXTURE, memory_gb=80, gpus=1, rank=16, max_model_len=8192)
    assert adapters.room is not None
    assert adapters.max_loras == adapters.room.fit == 2


def test_the_variables_are_those_of_worker_vllm_and_of_the_file() -> None:
    pinned = file(f"{LLAMA}@main", 'max_model_len = 4096\nenv = { MAX_NUM_SEQS = "8" }', "count = 2")
    endpoint = answering_endpoint(pinned, planned(pinned))
    assert endpoint.env == {
        "MODEL_NAME": LLAMA, "MODEL_REVISION": "main", "ENABLE_LORA": "true", "MAX_LORAS": "4", "MAX_LORA_RANK": "16",
        "MAX_CPU_LORAS": "4", "MAX_MODEL_LEN": "4096", "TENSOR_PARALLEL_SIZE": "2", "GPU_MEMORY_UTILIZATION": "0.9",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_LORA_RESOLVER_CACHE_DIR": "/runpod-volume/lora-adapters", "MAX_NUM_SEQS": "8",
    }  # fmt: skip
    assert endpoint.name == "trainer-inference"
    assert endpoint.kept_variables({**endpoint.env, **SET}) == {ALIASES_AT: "noon"}
    alone = file(volumes="")
    endpoint = answering_endpoint(alone, planned(alone))
    assert not any(name.startswith("VLLM_") for name in endpoint.env)
    assert endpoint.kept_variables({**endpoint.env, **SET}) == SET
    assert dropped_note(endpoint, {**endpoint.env, **SET}) is None


@pytest.mark.parametrize(
    ("table", "why"),
    [('merged_model = "org/bot"', "a merged export takes none"), (f'base_model = "{MIXTURE}"', "they are not of the")],
)
def test_adapters_go_with_another_base_or_a_merged_export(table: str, why: str) -> None:
    before = file(volumes="")
    found = {**answering_endpoint(before, planned(before)).env, **SET}
    after = file(table=table, volumes="")
    endpoint = answering_endpoint(after, plan_adapters(after, [], SURVEY))
    assert endpoint.kept_variables(found) == {ALIASES_AT: "noon", "VLLM_EXTRA_ARGS": "--seed 3"}
    note = dropped_note(endpoint, found)
    assert note is not None
    assert note.startswith(f"2 adapters in the endpoint's variables will be taken out, since {why}")
    assert note.endswith(": bot, cat")
    assert dropped_note(endpoint, {**endpoint.env, **endpoint.kept_variables(found)}) is None


def test_a_merged_export_is_served_over_several_gpus_without_adapters() -> None:
    merged = file("Qwen/Qwen3-Next-80B-A3B-Instruct", 'merged_model = "/runpod-volume/exports/bot"', "count = 4")
    assert plan_adapters(merged, [], SURVEY) is None
    assert answering_endpoint(merged, None).env == {
        "MODEL_NAME": "/runpod-volume/exports/bot", "MAX_MODEL_LEN": "8192", "TENSOR_PARALLEL_SIZE": "4",
        "GPU_MEMORY_UTILIZATION": "0.9",
    }  # fmt: skip


def test_a_prefetch_brings_the_base_that_answers_too() -> None:
    assert file(LLAMA).wanted_models == (LLAMA,)
    assert file(LLAMA, f'base_model = "{MIXTURE}"').wanted_models == (LLAMA, MIXTURE)
    assert file(LLAMA, f'base_model = "{MIXTURE}"\nmerged_model = "org/bot"').wanted_models == (LLAMA,)


def test_always_on_workers_are_priced() -> None:
    endpoint = answering_endpoint(text := file(volumes=VOLUME + "\n[inference.workers]\nmin = 2"), planned(text))
    plan = plan_deployment(endpoint, SURVEY)
    assert (plan.always_usd_per_hour, plan.most_usd_per_hour) == (5.48, 8.22)


@pytest.mark.parametrize(
    ("specification", "fleet", "sentence"),
    [
        (file("Qwen/Qwen3-Next-80B-A3B-Instruct", gpu="count = 2"), (), "in_proj_qkvz and in_proj_ba wrongly where 2"),
        (file("Qwen/Qwen3-Next-80B-A3B-Instruct"), (), "a merged export, which more GPUs may share"),
        (file("Qwen/Qwen2.5-7B-Instruct", gpu="count = 8"), (), "28 attention heads can be divided"),
        (
            file(),
            (made(2, use_dora=True),),
            "every finished adapter of meta-llama/Meta-Llama-3-8B-Instruct is trained w",
        ),
        (file(table="max_model_len = 500000"), (), "room for 401"),
        (file("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "max_lora_rank = 512"), (), "or more GPUs in inference.gpu"),
        (file(table="max_loras = 256\nmax_lora_rank = 128"), (), "inference.max_loras is 256, and 65 adapters of the"),
        (file(table="max_loras = 6\nmax_cpu_loras = 5"), (), "no fewer than max_loras, 6"),
        (file(table="disk_gb = 10", volumes=""), (), "onto its own disk, 16 GB: raise it"),
        (file(table='merged_model = "/runpod-volume/bot"', volumes=""), (), "the file names no volume"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_answered_wrongly_is_refused(
    specification: Specification, fleet: tuple[FinishedAdapters, ...], sentence: str
) -> None:
    assert sentence in refused(specification, *fleet)


def test_what_can_not_be_called_or_checked_is_told() -> None:
    notes = planned(file(), made(2, use_dora=True), made(1), made(4, base="org/other")).notes
    assert [note.partition(":")[0] for note in notes] == [
        f"2 finished adapters of {LLAMA} can't be called",
        "finished adapters of other base models can't be called there",
    ]
    assert planned(file(), made(1)).notes == ()
    unknown = plan_adapters(file("org/unknown", gpu="count = 2"), None, SURVEY)
    assert unknown is not None
    assert [note[:20] for note in unknown.notes] == ["no database tells wh", "nothing is known of "]
    quantised = planned(file("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", 'env = { QUANTIZATION = "fp8" }', ""))
    assert "QUANTIZATION is set" in quantised.notes[0]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[inference]\n", "[inference]\nmax_lora = 3\n", "line 6: inference.max_lora is no key of a deployment"),
        ('pools = ["AMPERE_80"]', "count = 9", "line 8: inference.gpu.count: must be less than or equal to 8."),
        (
            "[inference]\n",
            '[inference]\nenv = { MAX_LORAS = "3" }\n',
            "line 6: inference.env: 'MAX_LORAS' follows from max",
        ),
        ("[inference]\n", '[inference]\nenv = { HF_HUB_OFFLINE = "1" }\n', "so that no adapter fits its name"),
        (
            "[inference]\n",
            '[inference]\nmerged_model = "/etc"\n',
            "line 6: inference.merged_model: write a folder below",
        ),
        ("[inference]\n", '[inference]\nmerged_model = "/runpod-volume/../x"\n', "write a folder below"),
        (
            "[inference]\n",
            '[inference]\nvolume = "b"\n',
            "inference.volume names b, which is none of the volumes: models",
        ),
        ("[inference]\n", '[inference]\nname = "trainer"\n', "inference.name is trainer, as the trainer's endpoint"),
        ("[[volumes]]", "[inference.workers]\nmin = 4\n[[volumes]]", "min is 4, and max 3"),
        (
            "[[volumes]]",
            f"{VOLUME.replace('models', 'b').replace('EU', 'US')}\n[[volumes]]",
            "there are several volumes",
        ),
    ],
)
def test_a_fault_of_the_table_is_one_sentence_with_its_line(old: str, new: str, sentence: str) -> None:
    text = TEXT % (LLAMA, "", "", "") + VOLUME
    assert old in text
    with pytest.raises(DeploymentFileError) as caught:
        parse_specification(text.replace(old, new, 1), Path("deploy.toml"))
    assert sentence in str(caught.value)
