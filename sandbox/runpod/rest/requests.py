"""The bodies and query parameters that the REST API accepts. Everything else is refused, as RunPod does.

The names are RunPod's (in camel case on the wire), and so are the limits. What depends on other resources, or on
several fields of a resource that exists, is checked in `account`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.alias_generators import to_camel

from sandbox.runpod.rest.problems import ProblemError

Text = Annotated[str, Field(min_length=1)]
CudaVersion = Annotated[str, Field(pattern=r"^\d+\.\d+$")]
VolumeType = Literal["STANDARD", "HIGH_PERFORMANCE"]
Stock = Literal["NONE", "LOW", "MEDIUM", "HIGH"]
Category = Literal["CPU", "NVIDIA", "AMD"]
FlashBoot = Literal["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]
Size = Annotated[int, Field(ge=10, le=4096)]


class Body(BaseModel):
    """A body: unknown fields, other types than the described ones, and null are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)
    nullable: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _has_no_null(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, value in data.items():
                if value is None and name not in cls.nullable:
                    raise ValueError(f"{name} must not be null")
        return data

    def given(self) -> dict[str, Any]:
        """Return the fields that the caller sent, under their names on the wire."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Container(Body):
    """The settings of a container, which templates and endpoints share."""

    nullable = frozenset({"registry"})
    image: str | None = None
    args: str | None = None
    disk: int | None = Field(default=None, ge=1)
    ports: list[str] | None = None
    env: dict[str, str] | None = None
    registry: str | None = None


class PersistentMount(Body):
    """The disk of a pod's host; templates for serverless endpoints must have none."""

    size: int = Field(ge=10)
    path: str


class Mounts(Body):
    """The mounts of a template."""

    persistent: PersistentMount | None = None


class _TemplateFields(Container):
    mounts: Mounts | None = None
    serverless: bool | None = None
    public: bool | None = None
    category: Category | None = None
    start_ssh: bool | None = None
    start_jupyter: bool | None = None
    allowed_cuda_versions: list[CudaVersion] | None = None


class CreateTemplate(_TemplateFields):
    """The body of `POST /v2/templates`."""

    name: Text
    image: str


class UpdateTemplate(_TemplateFields):
    """The body of `PATCH /v2/templates/{id}`."""

    name: Text | None = None


class CreateVolume(Body):
    """The body of `POST /v2/network-volumes`; `size` is in GB."""

    name: Text
    size: Size
    data_center: Text
    type: VolumeType | None = None


class UpdateVolume(Body):
    """The body of `PATCH /v2/network-volumes/{id}`, which must change something."""

    name: Text | None = None
    size: Size | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("at least one of name and size is required")
        return self


class CreateRegistry(Body):
    """The body of `POST /v2/registries`."""

    name: Text
    username: Text = Field(repr=False)
    password: Text = Field(repr=False)


class _Gpu(Body):
    excluded_types: list[Annotated[str, Field(pattern=r"^\s*[^-\s]")]] | None = None
    count: int | None = Field(default=None, ge=1)
    allowed_cuda_versions: list[CudaVersion] | None = None

    @field_validator("excluded_types")
    @classmethod
    def _has_no_repetition(cls, value: list[str] | None) -> list[str] | None:
        return _unique(value)


class CreateGpu(_Gpu):
    """The GPUs of a new endpoint."""

    pools: list[str] = Field(min_length=1)
    min_cuda_version: CudaVersion | None = None


class UpdateGpu(_Gpu):
    """A change of an endpoint's GPUs. An empty `minCudaVersion` removes the limit."""

    pools: list[str] | None = Field(default=None, min_length=1)
    min_cuda_version: Annotated[str, Field(pattern=r"^$|^\d+\.\d+$")] | None = None

    @model_validator(mode="after")
    def _selects_as_a_whole(self) -> Self:
        if self.excluded_types is not None and self.pools is None:
            raise ValueError("excludedTypes requires pools")
        return self


class Cpu(Body):
    """A kind of CPU worker."""

    id: Text
    vcpu_count: int = Field(ge=2)


class Workers(Body):
    """The limits of an endpoint's workers; `idleTimeout` is in seconds."""

    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)
    idle_timeout: int | None = Field(default=None, ge=1, le=3600)


class QueueDelay(Body):
    """More workers when requests wait longer than `queueDelay` seconds."""

    type: Literal["QUEUE_DELAY"]
    queue_delay: float = Field(ge=0.5)


class RequestCount(Body):
    """A worker for every `requestCount` requests."""

    type: Literal["REQUEST_COUNT"]
    request_count: int = Field(ge=1)


Scaling = Annotated[QueueDelay | RequestCount, Field(discriminator="type")]


class _EndpointFields(Container):
    cpu: list[Cpu] | None = Field(default=None, min_length=1)
    data_center_ids: list[str] | None = None
    network_volumes: list[str] | None = None
    flashboot: FlashBoot | None = None
    timeout: int | None = None
    workers: Workers | None = None

    @field_validator("cpu")
    @classmethod
    def _has_no_repetition(cls, value: list[Cpu] | None) -> list[Cpu] | None:
        return _unique(value)


class CreateEndpoint(_EndpointFields):
    """The body of `POST /v2/serverless`; `timeout` is in milliseconds."""

    name: Text
    type: Literal["QUEUE", "LOAD_BALANCER"]
    scaling: Scaling
    gpu: CreateGpu | None = None
    template_id: Text | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.template_id is None and self.image is None:
            raise ValueError("image is required without templateId")
        if self.type == "LOAD_BALANCER" and isinstance(self.scaling, QueueDelay):
            raise ValueError("a LOAD_BALANCER endpoint scales by REQUEST_COUNT")
        return self


class UpdateEndpoint(_EndpointFields):
    """The body of `PATCH /v2/serverless/{id}`."""

    name: Text | None = None
    scaling: Scaling | None = None
    gpu: UpdateGpu | None = None
    template_id: str | None = None


class PodGpu(Body):
    """The GPUs of a pod: one type, by its id."""

    id: str
    count: int = Field(default=1, ge=1)
    allowed_cuda_versions: list[CudaVersion] | None = None
    min_cuda_version: CudaVersion | None = None


class NetworkMount(Body):
    """A network volume in a pod."""

    volume_id: str
    path: str


class PodMounts(Mounts):
    """The mounts of a pod: a disk of its host or a network volume."""

    network: list[NetworkMount] | None = Field(default=None, max_length=1)


class CreatePod(Container):
    """The body of `POST /v2/pods`."""

    name: Text
    cloud: Literal["SECURE", "COMMUNITY"] | None = None
    gpu: PodGpu | None = None
    cpu: Cpu | None = None
    data_center_ids: list[str] | None = None
    global_networking: bool | None = None
    mounts: PodMounts | None = None
    start_jupyter: bool | None = None
    start_ssh: bool | None = None
    template_id: Text | None = None

    @model_validator(mode="after")
    def _has_an_image(self) -> Self:
        if self.template_id is None and self.image is None:
            raise ValueError("image is required without templateId")
        return self


class PodAction(Body):
    """The body of `POST /v2/pods/{id}/action`."""

    action: Literal["start", "stop", "restart", "terminate"]


class Query(BaseModel):
    """The query parameters of a call. A list is separated by commas."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    @field_validator("*", mode="before")
    @classmethod
    def _split(cls, value: Any, info: ValidationInfo) -> Any:
        is_list = "list[" in str(cls.model_fields[info.field_name or ""].annotation)
        return value.split(",") if is_list and isinstance(value, str) else value


class GpuQuery(Query):
    """The filters of the GPU catalog, which only say something about the stock."""

    include: list[Literal["AVAILABILITY"]] | None = Field(default=None, max_length=1)
    product: list[Literal["POD", "CLUSTER", "SERVERLESS"]] | None = None
    count: int = Field(default=1, ge=1)
    cloud: Literal["SECURE", "COMMUNITY"] | None = None
    country_codes: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]] | None = None
    cuda_versions: list[CudaVersion] | None = None
    min_cuda_version: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")] | None = None

    def check(self) -> None:
        """Refuse combinations that say nothing.

        Raises:
            ProblemError: a filter without `include`, `include` without `product`, or both CUDA filters.
        """
        if self.include is None and self.model_fields_set:
            raise ProblemError(400, f"{_names(self.model_fields_set)} requires include=AVAILABILITY")
        if self.include is not None and not self.product:
            raise ProblemError(400, "include=AVAILABILITY requires product")
        if self.cuda_versions is not None and self.min_cuda_version is not None:
            raise ProblemError(400, "cudaVersions and minCudaVersion exclude each other")


class DataCenterQuery(Query):
    """The filters of the data centres."""

    include: list[Literal["GPU_AVAILABILITY", "CPU_AVAILABILITY"]] | None = None
    regions: list[str] | None = None
    network_volume_types: list[VolumeType] | None = None
    compliance: list[str] | None = None
    global_network: bool | None = None


class PodListQuery(Query):
    """Whether the pods of clusters are listed, too: there are none here."""

    include_cluster_pods: bool = False


class LogQuery(Query):
    """Which lines of a worker's log are wanted; `tail` counts the lines before now."""

    source: Literal["container", "system"] | None = None
    tail: int = Field(default=100, ge=0, le=5000)
    since: str | None = None


Model = TypeVar("Model", bound=BaseModel)


def parse_body(model: type[Model], content: bytes) -> Model:
    """Read a body.

    Raises:
        ProblemError: the body is not JSON (400), or not as described (422).
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        if any(problem["type"] == "json_invalid" for problem in error.errors()):
            raise ProblemError(400, "The body is not valid JSON.") from None
        raise ProblemError(422, "The body is not valid.", _findings(error)) from None


def parse_query(model: type[Model], parameters: dict[str, str]) -> Model:
    """Read the query parameters.

    Raises:
        ProblemError: a parameter is unknown (400) or its value is not as described (422).
    """
    try:
        return model.model_validate(parameters)
    except ValidationError as error:
        found = error.errors(include_url=False)
        unknown = [str(problem["loc"][0]) for problem in found if problem["type"] == "extra_forbidden"]
        if unknown:
            raise ProblemError(400, f"Unknown query parameter: {', '.join(unknown)}.") from None
        raise ProblemError(422, "The query parameters are not valid.", _findings(error)) from None


def _findings(error: ValidationError) -> list[str]:
    # The value is left out: it may be a password.
    return [
        f"{'.'.join(['$', *map(str, problem['loc'])])}: {re.sub('^Value error, ', '', problem['msg'])}"
        for problem in error.errors(include_url=False, include_input=False)
    ]


def _names(fields: set[str]) -> str:
    return ", ".join(sorted(to_camel(name) for name in fields))


def _unique(value: list[Any] | None) -> list[Any] | None:
    if value is not None and any(entry in value[:index] for index, entry in enumerate(value)):
        raise ValueError("the entries must differ")
    return value
