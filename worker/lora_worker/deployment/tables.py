"""The tables of `deploy.toml` that its endpoints share. Every key is checked, and none of them may hold a secret."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from lora_worker.configuration.contradictions import LEAST_USEFUL_SECONDS
from lora_worker.deployment.resources import MAX_IDLE_SECONDS, MAX_VOLUME_GB, MIN_VOLUME_GB, VolumeType
from lora_worker.deployment.secrets import secret_fault
from lora_worker.launchers.runpod.settings import MAX_POLICY_SECONDS

MAX_VARIABLES = 50
"""RunPod takes no more environment variables for a worker."""


def check_text(pattern: str, explanation: str) -> AfterValidator:
    """Return a check that a whole text matches; the message does not repeat the text."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(explanation)
        return text

    return AfterValidator(check)


_NAME = check_text(
    r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,118}[A-Za-z0-9._-])?",
    "write letters, digits, blanks and any of . _ -, 120 at most, beginning with a letter or digit",
)
Name = Annotated[str, _NAME]
_PoolName = Annotated[str, check_text(r"[A-Z0-9_]{1,40}", "write a pool's name, such as AMPERE_80")]
CudaVersion = Annotated[str, check_text(r"[0-9]{1,3}\.[0-9]{1,3}", "write major.minor, such as 12.6")]
DataCenterId = Annotated[str, check_text(r"[A-Z0-9-]{2,40}", "write a data centre's id, such as EU-RO-1")]
_GpuType = Annotated[str, Field(min_length=1, max_length=100)]


def _no_repeats(items: tuple[str, ...]) -> tuple[str, ...]:
    repeated = [item for item, count in Counter(items).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is named twice")
    return items


Once = AfterValidator(_no_repeats)


class Table(BaseModel):
    """A table of the file. Unknown keys are refused, and no value is part of an error's text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _make_tuples(cls, value: Any) -> Any:
        # Strict checking takes no list for a tuple, and TOML has nothing but lists.
        return tuple(value) if isinstance(value, list) else value


class Gpu(Table):
    """On which GPUs the workers run."""

    pools: Annotated[tuple[_PoolName, ...], Field(min_length=1, max_length=20), Once] = Field(
        default=("AMPERE_80", "ADA_80_PRO"),
        description="Pools of GPUs; a worker is placed where one is free. Name several, so that jobs seldom wait",
    )
    excluded_types: Annotated[tuple[_GpuType, ...], Field(max_length=50), Once] = Field(
        default=(), description="GPU types of these pools on which no worker may run, by the catalog's ids"
    )
    count: int = Field(default=1, ge=1, le=8, description="GPUs of one worker; a training uses one")
    min_cuda: CudaVersion | None = Field(
        default="12.6",
        description="Least CUDA version of a machine's driver: that of the image, or its container does not start",
    )


class Workers(Table):
    """How many workers there are, and how long they live."""

    max: int = Field(default=3, ge=1, le=1000, description="Most workers, and so most trainings at the same time")
    idle_seconds: int = Field(
        default=30,
        ge=1,
        le=MAX_IDLE_SECONDS,
        description="How long a worker without a job is kept, and billed: the next job of that time starts at once",
    )
    queue_delay_seconds: float = Field(
        default=4, ge=0.5, le=3600, description="After how long a job's wait another worker is started"
    )
    execution_seconds: int = Field(
        default=43_200,
        ge=int(LEAST_USEFUL_SECONDS),
        le=MAX_POLICY_SECONDS,
        description="Longest time of a job; at least LORA_WORKER_MAX_RUN_SECONDS",
    )
    flashboot: bool = Field(
        default=False, description="RunPod's FlashBoot; saves seconds of a start and gains nothing for trainings"
    )

    @property
    def always_on(self) -> int:
        """How many workers are kept without a job: none, since each is billed by the second."""
        return 0


class Volume(Table):
    """A network volume: base models and checkpoints are kept there."""

    name: Name = Field(description="The volume's name at RunPod")
    size_gb: int = Field(
        ge=MIN_VOLUME_GB,
        le=MAX_VOLUME_GB,
        description="Size in GB; it can be enlarged later, and never reduced",
    )
    data_center: DataCenterId = Field(description="Where it is, for good; the workers run there, too")
    type: VolumeType | None = Field(
        default=None, description="STANDARD or HIGH_PERFORMANCE; unset: the usual one there"
    )


Image = Annotated[
    str, check_text(r"[a-z0-9][\w./:@-]{0,499}", "write an image's reference, such as ghcr.io/you/lora-trainer:0.2.0")
]
DataCenters = Annotated[tuple[DataCenterId, ...], Field(max_length=50), Once]


def check_variables(variables: dict[str, str]) -> dict[str, str]:
    """Check the names and number of a container's variables, and that none holds a secret. Raises `ValueError`."""
    if len(variables) > MAX_VARIABLES:
        raise ValueError(f"RunPod takes {MAX_VARIABLES} variables at most")
    for name, value in variables.items():
        fault = _name_fault(name) or secret_fault(name, value)
        if fault:
            raise ValueError(f"{name[:60]!r} {fault}")
    return variables


Variables = Annotated[dict[str, str], AfterValidator(check_variables)]


class EndpointTable(Table):
    """One endpoint as it shall be at RunPod, and the volumes that it uses."""

    name: Name = Field(description="The endpoint's name at RunPod, by which it is found again")
    image: Image = Field(description="The image, with a tag that never moves: machines keep a copy, also of `latest`")
    registry: Name | None = Field(
        default=None, description="Name of the registry credentials at RunPod, for a private image"
    )
    disk_gb: int = Field(default=50, ge=5, le=4000, description="A worker's own disk in GB, empty at each start")
    data_centers: DataCenters = Field(
        default=(), description="Where workers may run; with volumes, it follows from them. Empty: anywhere"
    )
    env: Variables = Field(
        default_factory=dict,
        description='Variables of the container. No secret: write "{{ RUNPOD_SECRET_name }}" for a secret at RunPod',
    )
    gpu: Gpu = Field(default=Gpu(), description="On which GPUs the workers run")
    workers: Workers = Field(default=Workers(), description="How many workers there are, and how long they live")
    volumes: Annotated[tuple[Volume, ...], Field(max_length=20)] = Field(
        default=(), description="Network volumes, one in each data centre at most"
    )

    def kept_variables(self, found: Mapping[str, str]) -> dict[str, str]:  # noqa: ARG002 - a subclass reads it
        """Return those of the endpoint's variables that commands set there, and that are no difference to the file."""
        return {}

    @property
    def placement(self) -> tuple[str, ...]:
        """Where workers may run: the data centres that the file names, or those of the volumes; empty: anywhere."""
        return self.data_centers or tuple(volume.data_center for volume in self.volumes)

    @model_validator(mode="after")
    def _check_volumes(self) -> EndpointTable:
        # With a message of their own for each, since these faults concern two places of the file.
        for fault in (_repeated(self.volumes, lambda volume: volume.name, "name"),
                      _repeated(self.volumes, lambda volume: volume.data_center, "data centre")):  # fmt: skip
            if fault:
                raise ValueError(fault)
        places = {volume.data_center for volume in self.volumes}
        elsewhere = sorted(set(self.data_centers) - places) if places else []
        if elsewhere:
            raise ValueError(
                f"data_centers names {elsewhere[0]}, where none of the volumes is: workers run where a volume is; "
                "add one there, or take data_centers out"
            )
        return self


def _name_fault(name: str) -> str | None:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name, re.ASCII):
        return None
    return "is no name of a variable: write letters, digits and _"


def _repeated(volumes: Iterable[Volume], of: Callable[[Volume], str], what: str) -> str | None:
    repeated = [value for value, count in Counter(map(of, volumes)).items() if count > 1]
    if not repeated:
        return None
    return f"two volumes have the {what} {repeated[0]}: an endpoint takes one volume in each data centre, by its name"
