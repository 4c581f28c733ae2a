"""The settings of the launcher for a GPU machine of one's own: where its server is, and the key to it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from lora_worker.configuration.addresses import server_fault
from lora_worker.configuration.keys import SUPABASE_ROLES, Role, read_key, text_fault
from lora_worker.configuration.settings import Settings
from lora_worker.configuration.texts import split_list

LEAST_KEY_CHARACTERS = 32


def server_key_fault(key: SecretStr) -> str | None:
    """Explain why a text can't be the key of a GPU server, as the end of a sentence; None if it can."""
    role = read_key(key.get_secret_value()).role
    if role in SUPABASE_ROLES or role is Role.HUGGING_FACE:
        return f"holds {role}; make a key of its own with openssl rand -hex 32"
    if len(key.get_secret_value()) < LEAST_KEY_CHARACTERS:
        return f"is shorter than {LEAST_KEY_CHARACTERS} characters; make one with openssl rand -hex 32"
    return text_fault(key)


class GpuServerSettings(Settings):
    """The daemon's settings where a GPU server is the launcher."""

    gpu_server_url: str = Field(description="Address of `lora-worker gpu-server`, such as https://gpu.example.com")
    gpu_server_key: SecretStr = Field(description="The key that the GPU server was started with")
    former_gpu_servers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Addresses of former GPU servers, comma-separated, while launches made there live: the key is "
        "sent to them, too",
    )

    def server_address(self, url: str) -> str:
        """The address of another server, as the key may be sent to it.

        Raises:
            ValueError: it can't be one; the text says why.
        """
        try:
            return self._check_url(url)
        except ValueError as error:
            raise ValueError(f"endpoint: {error}") from None

    @field_validator("gpu_server_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if fault := server_fault(url, "the machine that runs `lora-worker gpu-server`"):
            raise ValueError(fault)
        return url.rstrip("/")

    @field_validator("gpu_server_key")
    @classmethod
    def _check_server_key(cls, key: SecretStr) -> SecretStr:
        if fault := server_key_fault(key):
            raise ValueError(fault)
        return key

    @field_validator("former_gpu_servers", mode="before")
    @classmethod
    def _split_former(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("former_gpu_servers")
    @classmethod
    def _check_former(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(cls._check_url(url) for url in urls)
