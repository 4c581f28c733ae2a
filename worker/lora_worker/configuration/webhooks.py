"""The settings of webhooks in both directions: where events are sent, and where launchers may wake this worker."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from lora_worker.configuration.addresses import is_base_url
from lora_worker.configuration.texts import split_list

SECRET_PREFIX = "whsec_"  # noqa: S105 (what each secret begins with)

_MOST_ENDPOINTS = 10
_MOST_SECRETS = 5
_MAX_URL_CHARACTERS = 500
_MAX_HOST_CHARACTERS = 80
_HOST = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}")
_LEAST_SECRET_BYTES, _MOST_SECRET_BYTES = 24, 64
"""What Standard Webhooks asks of a symmetric secret."""


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """Where events are sent, and the keys that sign them: all of them, so that a receiver can change its secret."""

    name: str
    """Its host and a hash of its URL: what is stored and shown, since a URL may hold a token."""
    url: str = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)


def read_endpoint(text: str) -> WebhookEndpoint:
    """Read one endpoint, written as `URL whsec_… [whsec_…]`.

    Raises:
        ValueError: it is none. The text says why, as the end of a sentence, and shows no part of it.
    """
    url, *secrets = text.split() or [""]
    parts = urlsplit(url)
    is_url = parts.scheme in {"http", "https"} and is_base_url(url.partition("?")[0])
    if not is_url or "#" in url or len(url) > _MAX_URL_CHARACTERS:
        raise ValueError(f"begins with no URL (https://host/path) of up to {_MAX_URL_CHARACTERS} characters")
    if any("://" in secret for secret in secrets):
        raise ValueError("has a second URL behind its first: a comma is missing between two endpoints")
    if not 1 <= len(secrets) <= _MOST_SECRETS:
        raise ValueError(
            f"has {len(secrets)} secrets behind its URL; write 1 to {_MOST_SECRETS} as https://… whsec_… whsec_…"
        )
    host = (parts.hostname or "")[:_MAX_HOST_CHARACTERS]
    return WebhookEndpoint(f"{host}-{hashlib.sha256(url.encode()).hexdigest()[:8]}", url, tuple(map(_key_of, secrets)))


def _key_of(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not _LEAST_SECRET_BYTES <= len(key) <= _MOST_SECRET_BYTES:
        raise ValueError(
            f"has a secret that is not {SECRET_PREFIX} and the base64 of {_LEAST_SECRET_BYTES} to "
            f"{_MOST_SECRET_BYTES} bytes; make one with: echo {SECRET_PREFIX}$(openssl rand -base64 32)"
        )
    return key


class WebhookSettings(BaseSettings):
    """The part of the daemon's settings that is about webhooks."""

    public_url: str = Field(
        default="",
        description="Address by which launchers reach LORA_WORKER_HTTP_PORT from outside, https://…: they call it when "
        "a run changes, and it is polled at once; empty: runs are polled every LORA_WORKER_POLL_SECONDS alone",
    )
    webhooks: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Endpoints that are told of each job's events, comma-separated, each with its secrets: "
        "https://… whsec_…; up to 10",
    )
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts (host:port, comma-separated) of such endpoints that may be called by http and on private "
        "addresses",
    )

    @property
    def webhook_endpoints(self) -> list[WebhookEndpoint]:
        """The endpoints that are told of events."""
        return [read_endpoint(text.get_secret_value()) for text in self.webhooks]

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str) -> str:
        if url and not (url.startswith("https://") and is_base_url(url) and len(url) <= _MAX_URL_CHARACTERS):
            raise ValueError(
                "must be https:// and a host, with a port and a path where it has them, and no more; the port of "
                "LORA_WORKER_HTTP_PORT is to be reached there through a proxy that speaks TLS"
            )
        return url.rstrip("/")

    @field_validator("webhooks", "webhook_hosts", mode="before")
    @classmethod
    def _split_webhooks(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("webhooks")
    @classmethod
    def _check_webhooks(cls, endpoints: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if fault := endpoints_fault(endpoints):
            raise ValueError(fault)
        return endpoints

    @field_validator("webhook_hosts")
    @classmethod
    def _check_webhook_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_HOST.fullmatch, hosts)):
            raise ValueError("holds what is no host:port; write them as hooks.internal:8080, comma-separated")
        return tuple(host.lower() for host in hosts)


def endpoints_fault(endpoints: Sequence[SecretStr]) -> str | None:
    """Say what is wrong with these endpoints, without showing any; None where nothing is."""
    if len(endpoints) > _MOST_ENDPOINTS:
        return f"holds more than {_MOST_ENDPOINTS} endpoints; let one receiver pass the events on"
    names = set()
    for number, text in enumerate(endpoints, start=1):
        try:
            names.add(read_endpoint(text.get_secret_value()).name)
        except ValueError as error:
            return f"its endpoint number {number} {error}"
    return None if len(names) == len(endpoints) else "holds an endpoint twice; write its secrets behind one URL"
