"""The table `inference` of `deploy.toml`: an endpoint of worker-vllm that answers with a base and its adapters.

Names of variables and their meaning: worker-vllm v2.25.2 (vLLM 0.27.1), `docs/configuration.md` and
`src/args_builder.py`. A variable whose name is that of an option of `vllm serve` becomes the option; vLLM reads those
that begin with `VLLM_` by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from lora_contract.errands import ModelName
from lora_worker.deployment.modules import EXTRA_ARGUMENTS, LORA_MODULES, with_modules
from lora_worker.deployment.releasing import ALIASES_AT
from lora_worker.deployment.tables import (
    CudaVersion,
    DataCenters,
    EndpointTable,
    Gpu,
    Image,
    Name,
    Table,
    Variables,
    Volume,
    Workers,
    check_text,
)
from lora_worker.launchers.runpod.settings import MAX_POLICY_SECONDS

IMAGE = "runpod/worker-v1-vllm:v2.25.2"
"""worker-vllm's published image, in the release whose source was read. Others may know other variables."""

OWN_VARIABLES = {
    "MODEL_NAME": "base_model or merged_model",
    "MODEL_REVISION": "base_model, as organisation/model@revision",
    "ENABLE_LORA": "merged_model, which needs none",
    "MAX_LORAS": "max_loras",
    "MAX_LORA_RANK": "max_lora_rank",
    "MAX_CPU_LORAS": "max_cpu_loras",
    "MAX_MODEL_LEN": "max_model_len",
    "TENSOR_PARALLEL_SIZE": "gpu.count",
    "GPU_MEMORY_UTILIZATION": "nothing: how many adapters fit is reckoned with it",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "volume",
    "VLLM_PLUGINS": "volume",
    "VLLM_LORA_RESOLVER_CACHE_DIR": "volume",
    ALIASES_AT: "nothing: commands set it",
}
"""Variables that follow from keys of the table, and from which."""

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""With these vLLM replaces the base's name by its path (0.33.0, `engine/arg_utils.py`), and no adapter fits that."""


class InferenceGpu(Gpu):
    """On which GPUs the workers run that answer. All GPUs of a worker share one copy of the base."""

    count: int = Field(default=1, ge=1, le=8, description="GPUs of one worker, over which the base is spread")
    min_cuda: CudaVersion | None = Field(
        default="13.0", description="Least CUDA version of a machine's driver: that of worker-vllm's image"
    )


class InferenceWorkers(Workers):
    """How many workers answer, and how long they live."""

    min: int = Field(
        default=0, ge=0, le=1000,
        description="Workers that are always on (ACTIVE), billed day and night; 0: each starts with a request (FLEX)",
    )  # fmt: skip
    max: int = Field(default=3, ge=1, le=1000, description="Most workers")
    idle_seconds: int = Field(
        default=60, ge=1, le=3600, description="How long a worker without a request is kept, and billed"
    )
    execution_seconds: int = Field(default=600, ge=5, le=MAX_POLICY_SECONDS, description="Longest time of one request")
    flashboot: bool = Field(
        default=True, description="RunPod's FlashBoot, which brings a worker back in seconds that has just ended"
    )

    @property
    def always_on(self) -> int:
        """How many workers are kept without a request."""
        return self.min

    @model_validator(mode="after")
    def _check_numbers(self) -> InferenceWorkers:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, and max {self.max}: as many as are always on must be allowed")
        return self


class InferenceEndpoint(EndpointTable):
    """The endpoint that answers, as planning compares it with what RunPod has."""

    workers: InferenceWorkers = InferenceWorkers()

    def kept_variables(self, found: Mapping[str, str]) -> dict[str, str]:
        """Without a volume, `deploy inference modules` writes adapters into variables of the endpoint, too.

        They go where a merged export or another base is to answer: vLLM would not start with them. Other arguments of
        vLLM that are written beside them stay.

        Raises:
            DeploymentError: adapters have to go, and the variables are written in a way that is not read here.
        """
        if self.volumes:
            return {name: value for name, value in found.items() if name == ALIASES_AT}
        left = found if self.takes_adapters_of(found) else with_modules(found, {})
        return {name: value for name, value in left.items() if name in {ALIASES_AT, LORA_MODULES, EXTRA_ARGUMENTS}}

    def takes_adapters_of(self, found: Mapping[str, str]) -> bool:
        """Whether adapters that these variables name fit what the endpoint shall answer with: LoRA on the same base."""
        return "ENABLE_LORA" in self.env and found.get("MODEL_NAME") == self.env["MODEL_NAME"]


class Inference(Table):
    """An endpoint of worker-vllm beside the trainer's, on the same network volume."""

    name: Name | None = Field(
        default=None, description="The endpoint's name at RunPod; unset: the trainer's with -inference behind it"
    )
    image: Image = Field(default=IMAGE, description="worker-vllm's image, with a tag that never moves")
    registry: Name | None = Field(
        default=None, description="Name of the registry credentials, for an image of your own"
    )
    base_model: ModelName | None = Field(
        default=None, description="The base model, as organisation/model[@revision]; unset: the first of base_models"
    )
    merged_model: Annotated[
        str, check_text(r"/runpod-volume(?:/[\w][\w.-]*)+|[\w][\w.-]*/[\w][\w.-]*",
                        "write a folder below /runpod-volume, or a repository as organisation/model")
    ] | None = Field(
        default=None,
        description="A merged export to answer with, instead of base and adapters: its folder on the volume, or a "
        "repository",
    )  # fmt: skip
    volume: Name | None = Field(
        default=None, description="Which of the volumes holds base models and adapters; unset: the only one"
    )
    max_model_len: int = Field(
        default=8192, ge=256, le=1_048_576, description="Most tokens of a request and its answer together"
    )
    max_lora_rank: int | None = Field(
        default=None, ge=1, le=512, description="Highest rank that is served; unset: that of the finished adapters"
    )
    max_loras: int | None = Field(
        default=None, ge=1, le=256,
        description="Adapters that one batch of requests may use, each with room in GPU memory; unset: from the "
        "finished adapters, and what fits",
    )  # fmt: skip
    max_cpu_loras: int | None = Field(
        default=None, ge=1, le=4096, description="Adapters that are kept in a machine's memory; unset: as above"
    )
    disk_gb: int = Field(
        default=100, ge=5, le=4000, description="A worker's own disk in GB; without a volume it holds the base model"
    )
    data_centers: DataCenters = Field(
        default=(), description="Where workers may run, if there is no volume. Empty: anywhere"
    )
    env: Variables = Field(
        default_factory=dict, description="More variables of worker-vllm. No secret, as in the trainer's"
    )
    gpu: InferenceGpu = Field(default=InferenceGpu(), description="On which GPUs the workers run that answer")
    workers: InferenceWorkers = Field(
        default=InferenceWorkers(), description="How many workers answer, and how long they live"
    )

    @field_validator("env")
    @classmethod
    def _check_own(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if name in OWN_VARIABLES:
                raise ValueError(f"{name!r} follows from {OWN_VARIABLES[name]}: take it out")
            if name in OFFLINE_VARIABLES:
                raise ValueError(
                    f"{name!r} makes vLLM serve the base under its path, so that no adapter fits its name: take it out"
                )
        return env

    def endpoint(self, name: str, volumes: Sequence[Volume]) -> InferenceEndpoint:
        """Return the endpoint without the variables that follow from the adapters there are."""
        return InferenceEndpoint(
            name=name,
            image=self.image,
            registry=self.registry,
            disk_gb=self.disk_gb,
            data_centers=self.data_centers,
            env=self.env,
            gpu=self.gpu,
            workers=self.workers,
            volumes=tuple(volume for volume in volumes if self.volume in {None, volume.name}),
        )


def volume_fault(table: Inference, volumes: Sequence[Volume]) -> str | None:
    """Explain in one sentence why the volumes of a file don't fit the table; None if they do."""
    names = [volume.name for volume in volumes]
    if table.volume is not None and table.volume not in names:
        known = ", ".join(names) or "there are none"
        return f"inference.volume names {table.volume}, which is none of the volumes: {known}"
    if table.volume is None and len(volumes) > 1:
        return (
            "inference.volume is missing, and there are several volumes: an adapter is on the one where it was "
            "trained, so name the one that is to answer"
        )
    places = {volume.data_center for volume in volumes if table.volume in {None, volume.name}}
    if places and set(table.data_centers) - places:
        return "inference.data_centers names a place where its volume is not: take data_centers out"
    if not volumes:
        clash = sorted({LORA_MODULES, EXTRA_ARGUMENTS} & set(table.env))
        if clash:
            return f"inference.env sets {clash[0]}, in which `deploy inference modules` keeps adapters: take it out"
    return None
