"""RunPod's own settings: where its endpoint is, and the key to it."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode

from lora_worker.configuration.addresses import is_under, url_fault
from lora_worker.configuration.keys import SUPABASE_ROLES, Role, read_key, text_fault
from lora_worker.configuration.settings import ONE_IS_MISSING, Settings
from lora_worker.configuration.texts import split_list
from lora_worker.launchers.addresses import endpoint_id_of

API_URL = "https://api.runpod.ai/v2"
"""Jobs of an endpoint are sent there, with the endpoint's id behind it."""

REST_URL = "https://api.runpod.io/v2"
"""Endpoints, volumes and the catalog are there: another host than that of the jobs."""

MAX_POLICY_SECONDS = 7 * 86400
"""RunPod deletes a job this long after its submission, running or not."""


class RunPodAccount(BaseSettings):
    """What is needed to see and change what an account has at RunPod. It is enough for the commands `deploy`."""

    model_config = Settings.model_config

    gpu_cluster_api_key: SecretStr = Field(
        validation_alias=AliasChoices("GPU_CLUSTER_API_KEY", "RUNPOD_API_KEY"), description="RunPod's API key"
    )
    runpod_api_url: str = Field(
        default=REST_URL, description="RunPod's REST API v2, with which endpoints and volumes are made and looked at"
    )

    @field_validator("gpu_cluster_api_key")
    @classmethod
    def _check_runpod_key(cls, key: SecretStr) -> SecretStr:
        role = read_key(key.get_secret_value()).role
        is_anothers = role in SUPABASE_ROLES or role is Role.HUGGING_FACE
        fault = text_fault(key) or (f"holds {role}; set an API key of RunPod (rpa_…)" if is_anothers else None)
        if fault:
            raise ValueError(fault)
        return key

    @field_validator("runpod_api_url")
    @classmethod
    def _check_api(cls, url: str) -> str:
        fault = url_fault(url) or _api_fault(url)
        if fault:
            raise ValueError(fault)
        return url.rstrip("/")


class RunPodSettings(RunPodAccount, Settings):
    """The daemon's settings where RunPod is the launcher."""

    gpu_cluster_api_url: str = Field(
        default="", validation_alias=AliasChoices("GPU_CLUSTER_API_URL"),
        description=f"{API_URL}/<endpoint>; or set RUNPOD_ENDPOINT_ID",
    )  # fmt: skip
    runpod_endpoint_id: str = Field(
        default="", validation_alias=AliasChoices("RUNPOD_ENDPOINT_ID"),
        description="The endpoint's id, where GPU_CLUSTER_API_URL is not set",
    )  # fmt: skip
    former_endpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Addresses of former endpoints at another API than GPU_CLUSTER_API_URL's, comma-separated, "
        "while launches made there live: the key is sent to them, too",
    )
    runpod_inference_endpoint_id: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_-]{0,100}$",
        description="The id of the endpoint that answers with finished adapters, which `deploy inference apply` makes; "
        "unset: there is none",
    )

    @property
    def inference_address(self) -> str | None:
        """The address of the endpoint that answers with adapters, beside the trainer's; None: there is none."""
        if not self.runpod_inference_endpoint_id:
            return None
        return f"{self.gpu_cluster_api_url.rpartition('/')[0]}/{self.runpod_inference_endpoint_id}"

    def endpoint_address(self, endpoint: str) -> str:
        """The address of an endpoint that is named by it, or by its id beside the settings' own endpoint.

        Raises:
            ValueError: it can't be one; the text says why.
        """
        if "/" not in endpoint:
            endpoint = f"{self.gpu_cluster_api_url.rpartition('/')[0]}/{endpoint}"
        if endpoint_id_of(endpoint.rstrip("/")) is None:
            raise ValueError(f"endpoint: is no endpoint of RunPod; write its id, or {API_URL}/<id>")
        try:
            return self._check_endpoint(endpoint)
        except ValueError as error:
            raise ValueError(f"endpoint: {error}") from None

    @field_validator("gpu_cluster_api_url")
    @classmethod
    def _check_endpoint(cls, url: str) -> str:
        fault = (url_fault(url) or _endpoint_fault(url)) if url else None
        if fault:
            raise ValueError(fault)
        return url.rstrip("/")

    @field_validator("former_endpoints")
    @classmethod
    def _check_former_endpoints(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(cls._check_endpoint(url) for url in urls)

    @field_validator("former_endpoints", mode="before")
    @classmethod
    def _split_endpoints(cls, value: Any) -> Any:
        return split_list(value)

    @model_validator(mode="after")
    def _check_with_runpod(self) -> RunPodSettings:
        if not self.gpu_cluster_api_url:
            if not self.runpod_endpoint_id:
                variables = "GPU_CLUSTER_API_URL or RUNPOD_ENDPOINT_ID"
                raise PydanticCustomError(ONE_IS_MISSING, "{variables} is missing", {"variables": variables})
            self.gpu_cluster_api_url = f"{API_URL}/{self.runpod_endpoint_id}"
        if self.max_run_seconds + self.queue_allowance_seconds > MAX_POLICY_SECONDS:
            raise ValueError(
                "LORA_WORKER_MAX_RUN_SECONDS and LORA_WORKER_QUEUE_ALLOWANCE_SECONDS are together more than "
                f"{MAX_POLICY_SECONDS}, the seven days after which RunPod deletes a job, running or not"
            )
        return self


def _endpoint_fault(url: str) -> str | None:
    """Explain why a URL can't be that of a RunPod endpoint, as the end of a sentence; None if it can."""
    host = urlsplit(url).hostname or ""
    if is_under(host, "supabase.co", "supabase.com", "supabase.in"):
        return f"is Supabase's address; set the endpoint's URL, {API_URL}/<endpoint>"
    if is_under(host, "runpod.io") or host in {"runpod.ai", "www.runpod.ai", "console.runpod.ai"}:
        return f"is the console's address; set the endpoint's URL, {API_URL}/<endpoint>"
    return None


def _api_fault(url: str) -> str | None:
    """Explain why a URL can't be that of the REST API v2, as the end of a sentence; None if it can."""
    host = urlsplit(url).hostname or ""
    if host == "rest.runpod.io":
        return f"is the REST API v1, which RunPod has shut down; set {REST_URL}"
    if is_under(host, "runpod.ai"):
        return f"is the address of an endpoint's jobs; set {REST_URL}"
    return None
