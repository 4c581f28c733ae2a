"""All settings of the worker, with environment variable, unit and default. They are read and checked at the start."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lora_contract.protocol import CHART_POINTS
from lora_contract.words import fault_words
from lora_worker.configuration.addresses import project_of, supabase_fault, url_fault
from lora_worker.configuration.contradictions import LEAST_USEFUL_SECONDS, contradictions
from lora_worker.configuration.environment import ENV_FILE, ENV_FILE_ENCODING, meant_for
from lora_worker.configuration.keys import Role, public_fault, read_key, secret_fault, text_fault
from lora_worker.configuration.receivers import receivers_fault, split_urls
from lora_worker.configuration.routing_settings import RoutingSettings
from lora_worker.configuration.texts import none_if_empty, split_list
from lora_worker.configuration.webhooks import WebhookSettings
from lora_worker.errors import SettingsError

DEFAULT_BASE_MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
"""The base model that the application's inference endpoint serves. An adapter works only with its own base model."""

_KNOWN_BASE_MODELS = (
    DEFAULT_BASE_MODEL,
    "mistralai/Mistral-7B-Instruct-v0.3",
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    "Qwen/Qwen2.5-0.5B-Instruct",  # small, so that `deploy smoke` takes minutes and cents
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
)

_LEAST_SECRET_CHARACTERS = 32

Seconds = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)]
_BoundedSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""For fields with an `le` of their own: of two pydantic would keep that of `Seconds`."""

DEFAULT_LAUNCHER = "runpod"

NoticeName = Literal["job_failed", "job_ended", "jobs_held", "no_gpu", "budget_reached", "worker_not_ready"]
"""What operators can be told of (`observability.outbox.NoticeKind`)."""


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(WebhookSettings, RoutingSettings):
    """The daemon's settings. Each is set by `LORA_WORKER_<NAME>`, except those with a usual name of Supabase.

    A launcher's own settings are in a subclass of this, in the launchers' folder.

    Raises:
        pydantic.ValidationError: a setting is missing or wrong (`read_settings` makes sentences of it).
    """

    model_config = SettingsConfigDict(
        env_prefix="LORA_WORKER_", env_file=ENV_FILE, env_file_encoding=ENV_FILE_ENCODING, extra="ignore",
        populate_by_name=True, hide_input_in_errors=True,
    )  # fmt: skip

    supabase_url: str = Field(
        validation_alias=AliasChoices("SUPABASE_URL"), description="The project's URL, https://….supabase.co"
    )
    supabase_service_role_key: SecretStr = Field(
        validation_alias=AliasChoices("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY"),
        description="The secret key (sb_secret_…) or the legacy service_role JWT",
    )
    supabase_publishable_key: SecretStr = Field(
        validation_alias=AliasChoices("SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY"),
        description="The publishable key (sb_publishable_…) or the legacy anon JWT; goes to the GPU",
    )
    launcher: str = Field(
        default=DEFAULT_LAUNCHER, description="What starts runs on GPUs, whose own settings are required then"
    )

    token_secret: SecretStr | None = Field(
        default=None,
        description="What the runs' tokens are derived from, the same for all workers; empty: the service's key",
    )
    previous_token_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Former token secrets and service keys, comma-separated, while runs of their time are live",
    )
    name: str = Field(
        default="",
        description="The worker's name in leases and logs, with a random end that each process gets; "
        "empty: host and process",
    )
    poll_seconds: Seconds = Field(default=10, description="Between two polls of the runs and of the queue")
    lease_seconds: int = Field(
        default=60, ge=5, le=3600, description="A dead worker's runs are adopted after this long"
    )
    slots: int = Field(default=20, ge=0, le=1000, description="Runs this worker holds before it stops claiming")
    max_per_user: int | None = Field(default=3, ge=1, description="Live runs a user may have; empty: no limit")
    max_queued_per_user: int = Field(
        default=100, ge=1, le=10_000, description="Waiting jobs a user may have; more are refused where they are added"
    )
    max_attempts: int = Field(default=3, ge=1, le=20, description="Attempts a job has for faults of its own")
    max_infrastructure_failures: int = Field(
        default=5, ge=1, le=50, description="Lost GPUs and preemptions before a job is given up"
    )
    max_handlings: int = Field(
        default=6,
        ge=3,
        le=50,
        description="Workers that may begin preflight or settling of a run before it is given up",
    )
    validate_datasets: bool = Field(
        default=True, description="Validate uploaded datasets; switch the function validate-datasets off then"
    )
    retry_base_seconds: Seconds = Field(default=30, description="First wait before a retry; doubles, with jitter")
    retry_max_seconds: Seconds = Field(default=1800, description="Longest wait before a retry")
    doubt_seconds: Seconds = Field(
        default=180, description="How long a POST of unknown outcome may check in before it is sent again"
    )
    lost_seconds: Seconds = Field(
        default=600, description="A run unknown to the launcher and silent for this long is lost"
    )
    cancel_seconds: Seconds = Field(
        default=600, description="How long a cancel may go unconfirmed before the operator is warned"
    )
    queue_allowance_seconds: _BoundedSeconds = Field(
        default=86400, le=518400, description="How long a launch may wait for a GPU; with the next at most 604800"
    )
    max_start_seconds: _BoundedSeconds = Field(
        default=3600,
        le=604800,
        description="How long an endpoint's workers may start without one getting ready (pull of the image included) "
        "before its launches are stopped and its jobs held; a pod or job of a cloud that is paid for so long without a "
        "check-in is stopped, too",
    )
    hold_seconds: _BoundedSeconds = Field(
        default=1800,
        le=86400,
        description="How long a base model or image that failed for several users is held before one job tries it "
        "again; doubles up to a day",
    )
    max_run_seconds: _BoundedSeconds = Field(
        default=43200,
        ge=LEAST_USEFUL_SECONDS,
        le=604800,
        description="Longest GPU time of a job, all its attempts together",
    )
    max_cost_per_job: float = Field(default=100, gt=0, le=1_000_000, description="USD a job may cost over all its runs")
    max_cost_per_day: float | None = Field(
        default=None, ge=0, le=1e9, description="USD that all trainings of a UTC day may cost; empty: no limit"
    )
    max_cost_per_user_per_day: float | None = Field(
        default=None, ge=0, le=1e9, description="USD that a user's trainings of a UTC day may cost; empty: no limit"
    )
    storage_fee: float = Field(default=0, ge=0, le=1000, description="USD added for storing a finished model")
    default_base_model: str = Field(default=DEFAULT_BASE_MODEL, description="For jobs that name none")
    base_models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=_KNOWN_BASE_MODELS, description="Base models that jobs may name, comma-separated"
    )
    price_table: Path | None = Field(default=None, description="A price file of your own, shaped as money/prices.toml")
    chart_points: int = Field(default=CHART_POINTS, ge=10, le=1000, description="Metric points kept for a job")
    grant_wait_seconds: Seconds = Field(
        default=1800, description="How long a trainer waits for upload URLs before it leaves the adapter"
    )
    artifacts_bucket: str = Field(default="lora-models", description="Bucket of the adapters")
    serve_adapters: bool = Field(
        default=True, description="Put finished adapters where vLLM serves them from, on the trainer's network volume"
    )
    earlier_trainer: bool = Field(
        default=False, description="Fetch the files of an earlier trainer's results, by https from public hosts"
    )
    earlier_trainer_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts (host:port, comma-separated) that may serve them by http and from private addresses, too",
    )
    verify_sha256_max_bytes: int = Field(
        default=2 * 1024**3, ge=0, description="Files up to this size are read back and hashed when settled"
    )
    launcher_concurrency: int = Field(
        default=200,
        ge=1,
        le=400,
        description="Most calls of a kind to the launcher side by side; how many there are adapts to what it takes",
    )
    request_timeout_seconds: Seconds = Field(default=20, description="For one call to Supabase or the launcher")
    http_port: int = Field(default=0, ge=0, le=65535, description="Port of /healthz, /readyz, /metrics; 0: none")
    http_host: str = Field(default="127.0.0.1", description="Address of that port")
    dashboard_token: SecretStr | None = Field(
        default=None,
        description="What opens the dashboard, at least 32 characters; empty: a new one each time it starts",
    )
    notify_urls: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Where operators are told of trouble: Apprise URLs (mailto://, slack://, json://, …), "
        "comma-separated; needs the extra `notify`",
    )
    notify_about: Annotated[tuple[NoticeName, ...], NoDecode] = Field(
        default=get_args(NoticeName),
        description=f"What they are told of, comma-separated: {', '.join(get_args(NoticeName))}",
    )
    log_format: Literal["auto", "json", "console"] = Field(default="auto", description="auto: json unless a terminal")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged")

    @field_validator("supabase_url")
    @classmethod
    def _require_url(cls, url: str) -> str:
        if not url:
            raise ValueError("is empty; copy the project's URL, https://….supabase.co")
        fault = url_fault(url) or supabase_fault(url)
        if fault:
            raise ValueError(fault)
        return url.rstrip("/")

    @field_validator("supabase_service_role_key", "supabase_publishable_key")
    @classmethod
    def _check_key(cls, key: SecretStr, info: ValidationInfo) -> SecretStr:
        found, now = read_key(key.get_secret_value()), time.time()
        fault = (
            text_fault(key)
            or {
                "supabase_service_role_key": secret_fault(found, now=now),
                "supabase_publishable_key": public_fault(found, now=now),
            }[str(info.field_name)]
        )
        if fault:
            raise ValueError(fault)
        return key

    @field_validator("earlier_trainer_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"[A-Za-z0-9.-]+:[0-9]{1,5}", host):
                raise ValueError("holds what is no host:port; write them as files.internal:8080, comma-separated")
        return tuple(host.lower() for host in hosts)

    @field_validator("name")
    @classmethod
    def _make_unique(cls, name: str) -> str:
        # At its end a worker releases all leases under its name. With an equal name in another process, it would
        # release that process's leases as well.
        return f"{name.strip() or _process_name()}-{os.urandom(4).hex()}"

    @field_validator("token_secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        remedy = "make one with openssl rand -hex 32"
        if secret and len(secret.get_secret_value()) < _LEAST_SECRET_CHARACTERS:
            raise ValueError(f"is shorter than {_LEAST_SECRET_CHARACTERS} characters; {remedy}")
        if secret and read_key(secret.get_secret_value()).role is Role.PUBLISHABLE:
            raise ValueError(f"holds {Role.PUBLISHABLE}, which anybody can read; {remedy}")
        return secret

    @field_validator("dashboard_token")
    @classmethod
    def _check_dashboard_token(cls, token: SecretStr | None) -> SecretStr | None:
        if token and not re.fullmatch(rf"[A-Za-z0-9_-]{{{_LEAST_SECRET_CHARACTERS},200}}", token.get_secret_value()):
            raise ValueError(
                f"must be {_LEAST_SECRET_CHARACTERS} to 200 letters, digits, - and _, since it stands in a URL; "
                "make one with openssl rand -hex 32"
            )
        return token

    @field_validator("notify_urls", mode="before")
    @classmethod
    def _split_urls(cls, value: Any) -> Any:
        return split_urls(value)

    @field_validator("notify_urls")
    @classmethod
    def _check_urls(cls, urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if fault := receivers_fault(urls):
            raise ValueError(fault)
        return urls

    @field_validator("base_models", "previous_token_secrets", "earlier_trainer_hosts", "notify_about", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator(
        "max_per_user", "max_cost_per_day", "max_cost_per_user_per_day", "price_table",
        "token_secret", "dashboard_token", mode="before",
    )  # fmt: skip
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return none_if_empty(value)

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        wrong = list(contradictions(dict(self)))
        if wrong:
            raise ValueError(". ".join(wrong))
        if self.supabase_publishable_key == self.supabase_service_role_key:
            raise ValueError(
                "SUPABASE_PUBLISHABLE_KEY holds the secret key: it would go to the GPU container; "
                "set the publishable (anon) key"
            )
        for name in ("supabase_service_role_key", "supabase_publishable_key"):
            project = read_key(getattr(self, name).get_secret_value()).project
            if project and project_of(self.supabase_url) not in {None, project}:
                raise ValueError(f"{variable_of(name)} holds a key of another project than SUPABASE_URL")
        return self


def unconnected_settings(names: set[str]) -> Settings:
    """Read the settings for a command that calls no service: of Supabase's address and keys nothing is needed.

    Raises:
        SettingsError: the text names each other variable that is wrong, but never its value.
    """

    class Unconnected(Settings):
        """Settings in which addresses and keys stand for nothing."""

        supabase_url: str = "http://127.0.0.1:9"
        supabase_service_role_key: SecretStr = SecretStr("sb_secret_none")
        supabase_publishable_key: SecretStr = SecretStr("sb_publishable_none")

    return read_settings(Unconnected, names)


AnySettings = TypeVar("AnySettings", bound=BaseSettings)

ONE_IS_MISSING = "one_is_missing"
"""Type of the validation error where one of several settings is required. Its context holds their `variables`."""


def variable_of(name: str, settings: type[BaseSettings] = Settings) -> str:
    """Return the environment variable of a field; several alternatives are joined by “ or ”."""
    alias = settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return " or ".join(str(choice) for choice in alias.choices)
    return f"LORA_WORKER_{name.upper()}"


def _fields_by_variable(settings: type[BaseSettings]) -> dict[str, str]:
    return {variable: name for name in settings.model_fields for variable in variable_of(name, settings).split(" or ")}


def variables_of(settings: type[BaseSettings]) -> set[str]:
    """Return the environment variables of all fields."""
    return set(_fields_by_variable(settings))


def _hint(settings: type[BaseSettings], wanted: Sequence[str], names: set[str]) -> str:
    meant = meant_for(wanted, names, variables_of(settings))
    return f" ({meant} is set, which nothing reads)" if meant else ""


def _explain(settings: type[BaseSettings], error: ValidationError, names: set[str]) -> str:
    """Write one sentence for each problem; `names` are the variables that are set."""
    sentences = []
    by_variable = _fields_by_variable(settings)
    for problem in error.errors(include_url=False, include_input=False):
        place = str(problem["loc"][0]) if problem["loc"] else ""
        name = by_variable.get(place, place.lower().removeprefix("lora_worker_"))
        text = fault_words(problem["type"], problem["msg"])
        if problem["type"] == ONE_IS_MISSING:
            sentences.append(f"{problem['msg']}{_hint(settings, problem['ctx']['variables'].split(' or '), names)}.")
        elif not place:
            sentences.append(text + ".")
        elif problem["type"] == "missing":
            variable = variable_of(name, settings)
            hint = _hint(settings, variable.split(" or "), names)
            sentences.append(f"{variable} is missing{hint}: {settings.model_fields[name].description}.")
        else:
            # A value of another form may be a key in the wrong place: it is not shown.
            wanted = f": {settings.model_fields[name].description}" if problem["type"].startswith("string_") else ""
            sentences.append(f"{variable_of(name, settings)}: {text}{wanted}.")
    return " ".join(sentences)


def read_settings(settings: type[AnySettings], names: set[str]) -> AnySettings:
    """Read settings of this class from the environment and `.env`; `names` are the variables that are set there.

    Raises:
        SettingsError: the text names each variable that is missing or wrong, but never its value.
    """
    try:
        return settings()
    except ValidationError as error:
        raise SettingsError(_explain(settings, error, names)) from None
