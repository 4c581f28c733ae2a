"""Logs without secrets, and Prometheus metrics."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge, Histogram
from pydantic import SecretStr

from lora_worker.configuration.settings import Settings

HELD_RUNS = Gauge("lora_worker_held_runs", "Runs this worker holds a lease for")
CLAIMED = Counter("lora_worker_claimed_total", "Jobs claimed")
ADOPTED = Counter("lora_worker_adopted_total", "Runs adopted from other workers")
LAUNCHED = Counter("lora_worker_launches_total", "Launches sent, by what came of them", ["answer"])
SETTLED = Counter("lora_worker_settled_total", "Runs settled, by the job's status afterwards", ["job_status"])
LEASES_LOST = Counter("lora_worker_leases_lost_total", "Leases lost to another worker or to time")
FAULTS_SEEN = Counter("lora_worker_service_faults_total", "Calls that failed, by service", ["service"])
CYCLE_SECONDS = Histogram("lora_worker_cycle_seconds", "Length of one poll cycle")
QUEUE_DEPTH = Gauge("lora_worker_queue_depth", "Queued jobs in the database")
OLDEST_WAIT_SECONDS = Gauge("lora_worker_oldest_wait_seconds", "How long the oldest queued job has waited")

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
