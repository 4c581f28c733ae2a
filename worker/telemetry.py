"""Logs without secrets, Prometheus metrics, and the health endpoints."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, make_wsgi_app
from pydantic import SecretStr

from worker.errors import PortTakenError
from worker.settings import Settings

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
    """The text without keys, tokens and signed parts of URLs."""
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


def configure_logging(settings: Settings) -> None:
    """Send structured logs to standard error, redacted, as JSON or for a terminal."""
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
    # httpx logs whole URLs, and signed URLs are secrets.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is inherited)
        """Health checks every few seconds are not worth a line."""


class HealthServer:
    """/healthz (the process lives), /readyz (its last cycle worked), /metrics, in a thread of its own.

    Raises:
        PortTakenError: the port can't be opened.
    """

    def __init__(self, host: str, port: int, ready: Callable[[], str | None]) -> None:
        self._ready = ready
        self._metrics = make_wsgi_app(REGISTRY)
        try:
            self._server: WSGIServer = make_server(host, port, self._answer, handler_class=_QuietHandler)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise PortTakenError(
                f"the port {port} can't be opened ({reason}): set LORA_WORKER_HTTP_PORT to a free one, or to 0 "
                "for none, and LORA_WORKER_HTTP_HOST to an address of this machine"
            ) from None
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        if path not in {"/healthz", "/readyz"}:
            start_response("404 Not Found", [("content-type", "text/plain")])
            return [b"not found\n"]
        problem = self._ready() if path == "/readyz" else None
        status = "503 Service Unavailable" if problem else "200 OK"
        start_response(status, [("content-type", "application/json")])
        return [json.dumps({"ok": problem is None, "problem": problem}).encode() + b"\n"]

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
