"""The settings of the launcher for Google's Vertex AI: project, region, image, and how machines are had."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from lora_worker.configuration.addresses import url_fault
from lora_worker.configuration.settings import Settings
from lora_worker.configuration.texts import split_list
from lora_worker.launchers.vertex.addresses import location_fault

MAX_JOB_SECONDS = 7 * 86_400
"""Vertex AI ends a custom job after this much work unless its `timeout` says otherwise; FLEX_START allows no more."""

Strategy = Literal["STANDARD", "SPOT", "FLEX_START"]
"""`Scheduling.Strategy` of `google.cloud.aiplatform.v1`, without the deprecated ones."""


class VertexSettings(Settings):
    """The daemon's settings where Vertex AI is the launcher."""

    vertex_project: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.:-]{1,61}[a-z0-9]$",
        description="Id of the Google Cloud project that pays for the jobs, such as my-project-123",
    )
    vertex_region: str = Field(
        pattern=r"^[a-z]{2,20}-[a-z]{2,20}[0-9]{1,2}$", description="Region of the jobs, such as us-central1"
    )
    vertex_image: str = Field(
        min_length=3,
        max_length=500,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$",
        description="The trainer's image in Artifact Registry, us-docker.pkg.dev/PROJECT/REPOSITORY/trainer:TAG",
    )
    vertex_bucket: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])?$",
        description="Name of the bucket, without gs://, that keeps checkpoints and base models, "
        "mounted at /gcs in the container; unset: what is "
        "started again begins anew",
    )
    vertex_strategy: Strategy = Field(
        default="STANDARD",
        description="How machines are had: STANDARD, SPOT (cheaper, may be taken away) or FLEX_START (waits for a GPU)",
    )
    vertex_machine_type: str = Field(
        default="",
        pattern=r"^[a-z0-9-]{0,60}$",
        description="Machine type, such as a3-highgpu-8g; unset: the one for the GPU of the endpoint or of the job",
    )
    vertex_boot_disk_gb: int = Field(
        default=200, ge=100, le=64_000, description="Gigabytes of a machine's disk, which holds the image and downloads"
    )
    vertex_service_account: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9.-]{0,99}@[a-z0-9.-]{1,200}\.gserviceaccount\.com)?$",
        description="Service account as which containers run, NAME@PROJECT.iam.gserviceaccount.com; "
        "unset: Vertex AI's own agent for custom code",
    )
    vertex_network: str = Field(
        default="",
        pattern=r"^(projects/[0-9]{1,20}/global/networks/[a-z0-9-]{1,63})?$",
        description="VPC network that jobs are peered with, projects/NUMBER/global/networks/NAME; unset: none",
    )
    vertex_api_url: str = Field(
        default="",
        description="Address of the API where it is not Google's own for the region, such as one of Private Service "
        "Connect: Google's access token is sent there",
    )
    vertex_former_endpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Addresses of former projects (https://REGION-aiplatform.googleapis.com/v1/projects/PROJECT/"
        "locations/REGION), comma-separated, while launches made there live: the access token is sent to them, too",
    )

    @property
    def vertex_endpoint(self) -> str:
        """Where launches go: the address of the project's region."""
        api = self.vertex_api_url or f"https://{self.vertex_region}-aiplatform.googleapis.com"
        return f"{api}/v1/projects/{self.vertex_project}/locations/{self.vertex_region}"

    @field_validator("vertex_api_url")
    @classmethod
    def _check_vertex_api(cls, url: str) -> str:
        fault = url_fault(url) if url else None
        if fault is None and urlsplit(url).path.strip("/"):
            fault = "must end with the host or its port: the version and the project are added to it"
        if fault:
            raise ValueError(fault)
        return url.rstrip("/")

    @field_validator("vertex_former_endpoints", mode="before")
    @classmethod
    def _split_vertex_former(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("vertex_former_endpoints")
    @classmethod
    def _check_vertex_former(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if fault := location_fault(url):
                raise ValueError(fault)
        return tuple(url.rstrip("/") for url in urls)
