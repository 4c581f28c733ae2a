"""Logs without secrets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import structlog
from pydantic import SecretStr

from lora_contract.redaction import redact
from lora_worker.configuration.settings import Settings
from lora_worker.observability.actions import Action


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


def secrets_of(settings: Settings) -> Iterator[str]:
    """Yield every key and token of the settings."""
    for _, value in settings:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, SecretStr):
                yield one.get_secret_value()
                # A webhook's endpoint is written with its secrets behind it.
                yield from one.get_secret_value().split()[1:]


class _Forwarder(logging.Handler):
    """Writes what libraries log as lines like our own: as JSON, with an action, without secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. As with any handler, a fault of it ends nothing."""
        try:
            structlog.get_logger(record.name).log(
                record.levelno,
                "a library reports",
                action=Action.LIBRARY_REPORTED,
                library=record.name,
                message=record.getMessage(),
                exc_info=record.exc_info,
            )
        except Exception:
            self.handleError(record)


def _forward_libraries() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _Forwarder) for handler in root.handlers):
        root.addHandler(_Forwarder(logging.WARNING))


def log_missing_traces(problem: str) -> None:
    """Log why no traces are sent, though variables of the environment ask for them."""
    structlog.get_logger(__name__).warning("no traces are sent", action=Action.TRACES_OFF, problem=problem)


@contextmanager
def logging_run(run_id: UUID, job_id: UUID) -> Iterator[None]:
    """Give every line that is logged until the context ends, also in tasks begun in it, the ids of this run."""
    with structlog.contextvars.bound_contextvars(run_id=str(run_id), job_id=str(job_id)):
        yield


def configure_logging(settings: Settings) -> None:
    """Write structured logs to standard error, without secrets, as JSON or for a terminal."""
    secrets = tuple(secrets_of(settings))
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
    _forward_libraries()
    # At their level INFO these libraries log whole URLs, and signed URLs are secrets.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
