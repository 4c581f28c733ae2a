"""Which adapters an endpoint that answers has room for, and the variables of worker-vllm that follow from that.

Pure: what there is comes from the database and RunPod's catalog, and what is wanted from the table `inference`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from lora_contract.base_shapes import SHAPES
from lora_contract.errands import split_model
from lora_contract.hyperparameters import Hyperparameters
from lora_contract.serving import SERVING_FOLDER
from lora_contract.serving_rules import SERVING_RULES, serving_faults, vllm_rank
from lora_contract.words import counted
from lora_worker.deployment.adapter_memory import FULL_REQUESTS, UTILIZATION, Room, attention_heads, room_for_adapters
from lora_worker.deployment.catalog import types_of
from lora_worker.deployment.fleet import FinishedAdapters, Fleet
from lora_worker.deployment.inference import Inference, InferenceEndpoint
from lora_worker.deployment.modules import read_modules
from lora_worker.deployment.specification import Specification
from lora_worker.deployment.survey import Survey
from lora_worker.errors import DeploymentError

MOUNT = "/runpod-volume"
PLUGINS = "VLLM_PLUGINS"
RESOLVER_VARIABLES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
    PLUGINS: "lora_filesystem_resolver",
    "VLLM_LORA_RESOLVER_CACHE_DIR": f"{MOUNT}/{SERVING_FOLDER}",
}
"""By these vLLM finds an adapter in the volume's folder at the first request for its name (0.33.0, `envs.py`)."""

_FEWEST_SLOTS, _MOST_SLOTS = 4, 8
"""Adapters of one batch, unless the file says it. More slots than a batch has adapters cost memory, and time in each
pass; fewer make requests for different adapters wait for each other."""
_MOST_IN_MACHINE = 64
_MACHINE_BYTES = 8 * 2**30
"""How much of a machine's memory adapters may take. RunPod's catalog tells no memory of serverless machines."""
_DEFAULT_RANK: int = Hyperparameters.model_fields["rank"].default


@dataclass(frozen=True, slots=True)
class Adapters:
    """What an endpoint takes of adapters: `max_loras` in one batch, `max_cpu_loras` in the machine's memory."""

    base_model: str
    finished: int
    """How many adapters of this base there are that vLLM serves."""
    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int
    room: Room | None
    """None where nothing is known of the base model's or the GPU's memory."""
    notes: tuple[str, ...] = ()


def plan_adapters(specification: Specification, fleet: Fleet | None, survey: Survey) -> Adapters | None:
    """Return what the endpoint takes of adapters; None where it answers with a merged export.

    Args:
        specification: the file, with its table `inference`.
        fleet: the finished adapters; None where no database tells them.
        survey: what there is at RunPod, with the catalog.

    Raises:
        DeploymentError: it would answer wrongly or not at all; one sentence that says what to change.
    """
    table = specification.inference
    assert table is not None
    if table.merged_model is not None:
        if table.merged_model.startswith(MOUNT) and not specification.inference_endpoint.volumes:
            raise DeploymentError("inference.merged_model is a folder on the volume, and the file names no volume")
        return None
    base, _ = split_model(specification.inference_base)
    _refuse_wrong_parallel(base, table.gpu.count)
    own = [some for some in fleet or () if some.base_model == base]
    served = [some for some in own if not some.use_dora]
    if own and not served:
        raise DeploymentError(
            f"every finished adapter of {base} is trained with DoRA, which vLLM refuses: export one with "
            "`lora-worker export JOB --as merged`, and name it in inference.merged_model"
        )
    finished = sum(some.adapters for some in served)
    rank = _rank(table, served)
    room = _room(base, table, rank, survey)
    # Weights in fewer bits take less than is reckoned here, so that nothing may be refused for it.
    limits = None if "QUANTIZATION" in table.env else room
    if limits is not None:
        _refuse_too_large(base, table, limits)
        if not specification.inference_endpoint.volumes:
            _refuse_small_disk(table, limits)
    slots = _slots(table, finished, limits)
    in_machine = _in_machine(table, finished, slots, room)
    notes = tuple(_notes(base, table, fleet, rank, room))
    return Adapters(base, finished, rank, slots, in_machine, room, notes)


FOLDER_NOTE = (
    f"vLLM starts once the volume has the folder {SERVING_FOLDER}, which a trainer of this release makes: run "
    "`lora-worker deploy prefetch` before, which brings the base model, too"
)
"""For an endpoint that is made new. The resolver raises where its folder is missing, and the server ends with it."""


def answering_endpoint(specification: Specification, adapters: Adapters | None) -> InferenceEndpoint:
    """Return the endpoint with all its variables; `adapters` is None where it answers with a merged export."""
    table, endpoint = specification.inference, specification.inference_endpoint
    assert table is not None
    variables = {
        "MAX_MODEL_LEN": str(table.max_model_len),
        "TENSOR_PARALLEL_SIZE": str(table.gpu.count),
        "GPU_MEMORY_UTILIZATION": str(UTILIZATION),
    }
    if adapters is None:
        assert table.merged_model is not None
        variables["MODEL_NAME"] = table.merged_model
    else:
        name, revision = split_model(specification.inference_base)
        variables |= {
            "MODEL_NAME": name,
            **({"MODEL_REVISION": revision} if revision else {}),
            "ENABLE_LORA": "true",
            "MAX_LORAS": str(adapters.max_loras),
            "MAX_LORA_RANK": str(adapters.max_lora_rank),
            "MAX_CPU_LORAS": str(adapters.max_cpu_loras),
            **(RESOLVER_VARIABLES if endpoint.volumes else {}),
        }
    return endpoint.model_copy(update={"env": {**table.env, **variables}})


def dropped_note(endpoint: InferenceEndpoint, found: Mapping[str, str]) -> str | None:
    """Name the adapters in an endpoint's variables that go with a merged export or another base; None if none go.

    Raises:
        DeploymentError: adapters have to go, and the variables are written in a way that is not read here.
    """
    if endpoint.volumes or endpoint.takes_adapters_of(found):
        return None
    dropped = list(read_modules(found))
    if not dropped:
        return None
    names = ", ".join(name[:150] for name in dropped[:10]) + (", …" if len(dropped) > 10 else "")
    why = "they are not of the base model" if "ENABLE_LORA" in endpoint.env else "a merged export takes none"
    return f"{counted(len(dropped), 'adapter')} in the endpoint's variables will be taken out, since {why}: {names}"


def _faults_in_parallel(base: str, gpus: int) -> list[str]:
    """What vLLM would get wrong of adapters where so many GPUs share the base; of an unknown base nothing is known."""
    model_type = SHAPES[base][0] if base in SHAPES else ""
    rule = SERVING_RULES.get(model_type)
    return serving_faults(model_type, rule.wrapped, tensor_parallel=gpus) if rule else []


def _refuse_wrong_parallel(base: str, gpus: int) -> None:
    if gpus == 1:
        return
    if faults := _faults_in_parallel(base, gpus):
        raise DeploymentError(
            f"inference.gpu.count is {gpus}: {faults[0]} Such an export is named in inference.merged_model"
        )
    heads = attention_heads(base)
    if heads is not None and heads % gpus:
        raise DeploymentError(
            f"inference.gpu.count is {gpus}, and vLLM starts {base} only where its {heads} attention heads can be "
            "divided by the GPUs: choose another number"
        )


def _rank(table: Inference, served: Fleet) -> int:
    wanted = table.max_lora_rank or max([_DEFAULT_RANK, *(some.rank for some in served)])
    try:
        return vllm_rank(wanted)
    except ValueError as error:
        raise DeploymentError(
            f"a finished adapter can't be served: {error}; write inference.max_lora_rank to leave it out"
        ) from None


def _room(base: str, table: Inference, rank: int, survey: Survey) -> Room | None:
    within = types_of(survey.gpu_types, table.gpu.pools, table.gpu.excluded_types)
    memories = [gpu.memory for gpu in within if gpu.memory]
    if not memories:
        return None
    return room_for_adapters(
        base, memory_gb=min(memories), gpus=table.gpu.count, rank=rank, max_model_len=table.max_model_len
    )


def _refuse_too_large(base: str, table: Inference, room: Room) -> None:
    if room.fit >= 1:
        return
    has = f"{base} has {_gb(room.weights_bytes)} GB of weights, and the smallest GPU {_gb(room.memory_bytes)} GB"
    if table.gpu.count > 1:
        has += f" ({table.gpu.count} of them)"
    larger = "name pools with larger GPUs in inference.gpu.pools, " + (
        "or a merged export, which more GPUs may share, in inference.merged_model"
        if _faults_in_parallel(base, 2)
        else "or more GPUs in inference.gpu.count"
    )
    if room.longest_tokens < 256:
        raise DeploymentError(f"{has}: it does not fit with an adapter; {larger}")
    raise DeploymentError(
        f"{has}: with an adapter there is room for {room.longest_tokens} tokens, and inference.max_model_len is "
        f"{table.max_model_len}; lower it, or {larger}"
    )


def _refuse_small_disk(table: Inference, room: Room) -> None:
    if table.disk_gb * 10**9 < room.weights_bytes:
        raise DeploymentError(
            f"inference.disk_gb is {table.disk_gb}, and without a volume a worker downloads the base model onto its "
            f"own disk, {_gb(room.weights_bytes)} GB: raise it"
        )


def _slots(table: Inference, finished: int, room: Room | None) -> int:
    if table.max_loras is None:
        wanted = max(_FEWEST_SLOTS, min(_MOST_SLOTS, _rounded(finished)))
        return wanted if room is None else min(wanted, room.fit)
    if room is not None and table.max_loras > room.fit:
        raise DeploymentError(
            f"inference.max_loras is {table.max_loras}, and {counted(room.fit, 'adapter')} of the highest rank fit "
            "into the GPU's memory: lower it, or inference.max_lora_rank"
        )
    return table.max_loras


def _in_machine(table: Inference, finished: int, slots: int, room: Room | None) -> int:
    if table.max_cpu_loras is None:
        fit = _MACHINE_BYTES // room.adapter_bytes if room else _MOST_IN_MACHINE
        return max(slots, min(_rounded(finished), _MOST_IN_MACHINE, fit))
    if table.max_cpu_loras < slots:
        raise DeploymentError(
            f"inference.max_cpu_loras is {table.max_cpu_loras}, and vLLM starts with no fewer than max_loras, {slots}"
        )
    return table.max_cpu_loras


def _rounded(number: int) -> int:
    """Round up to a power of two, so that not every finished job changes the endpoint."""
    return 1 << max(0, number - 1).bit_length()


def _notes(base: str, table: Inference, fleet: Fleet | None, rank: int, room: Room | None) -> Iterator[str]:
    if fleet is None and None in {table.max_lora_rank, table.max_loras}:
        yield (
            f"no database tells which adapters there are: ranks up to {rank} are served; set the worker's variables, "
            "or write max_lora_rank and max_loras into the table inference"
        )
    if room is None:
        yield f"nothing is known of the size of {base}, so nobody checked whether it fits into the GPU's memory"
    elif "QUANTIZATION" in table.env:
        yield "what fits is reckoned for weights in bf16, and QUANTIZATION is set: it is told, and refuses nothing"
    elif room.full_requests < FULL_REQUESTS:
        yield (
            f"the GPU's memory has room for {counted(room.full_requests, 'request')} of {table.max_model_len} tokens "
            "at the same time: more wait for each other"
        )
    yield from _notes_on(base, rank, fleet or ())


def _notes_on(base: str, rank: int, fleet: Fleet) -> Iterator[str]:
    own = [some for some in fleet if some.base_model == base]
    if dora := sum(some.adapters for some in own if some.use_dora):
        yield f"{counted(dora, 'finished adapter')} of {base} can't be called: vLLM refuses DoRA; export it merged"
    if high := sum(some.adapters for some in own if some.rank > rank and not some.use_dora):
        yield f"{counted(high, 'finished adapter')} of {base} can't be called: inference.max_lora_rank is {rank}"
    if others := _bases(some for some in fleet if some.base_model != base):
        yield f"finished adapters of other base models can't be called there: {', '.join(others[:5])}"


def _bases(fleet: Iterator[FinishedAdapters] | Collection[FinishedAdapters]) -> list[str]:
    return sorted({some.base_model for some in fleet})


def _gb(size: int) -> str:
    return f"{size / 1e9:.0f}" if size >= 10**10 else f"{size / 1e9:.1f}"
