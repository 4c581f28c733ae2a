"""Logs without secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import structlog
from pydantic import SecretStr

from lora_worker.configuration.settings import Settings

_SECRETS = re.compile(
    r"(eyJ[\w-]{8,}\.[\w-]+\.?[\w-]*)|(sb_(?:secret|publishable)_[\w-]+)|(rpa_\w+)|(hf_\w{20,})"
    r"|((?<=[?&])(?:token|apikey|sig|signature|X-Amz-\w+)=[^&\s\"']+)|(Bearer\s+\S+)",
    re.IGNORECASE,
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace keys, tokens, signed parts of URLs and the given `secrets` in a text by “[secret]”."""
    for secret in secrets:
        text = text.replace(secret, "[secret]")
    return _SECRETS.sub("[secret]", text)


def _redactor(secrets: tuple[str, ...]) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return redact(value, secrets)
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, list | tuple) else value

    def process(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {key: walk(value) for key, value in event.items()}

    return process


def _secrets(settings: Settings) -> Iterator[str]:
    for _, value in settings:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, SecretStr):
                yield one.get_secret_value()


@contextmanager
def logging_run(run_id: UUID, job_id: UUID) -> Iterator[None]:
    """Give every line that is logged until the context ends, also in tasks begun in it, the ids of this run."""
    with structlog.contextvars.bound_contextvars(run_id=str(run_id), job_id=str(job_id)):
        yield


def configure_logging(settings: Settings) -> None:
    """Write structured logs to standard error, without secrets, as JSON or for a terminal."""
    secrets = tuple(_secrets(settings))
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redactor(secrets),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # At their level INFO these libraries log whole URLs, and signed URLs are secrets.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
