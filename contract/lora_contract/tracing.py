"""OpenTelemetry traces of a run's life, made by the workers and the trainer that have it one after another.

A run is one trace. Its id follows from the run's id, and so does the id of its root span: whoever has the run adds to
the same trace, with nothing to store or to hand over, also after an adoption. The library is imported only where the
usual variables ask for traces (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SDK_DISABLED`, …).

Tracing never holds up the work: spans go into a bounded queue, a thread of the library exports them, and what can't be
exported is lost. A span holds only the attributes of `ATTRIBUTES`; texts of users, errors and URLs are none of them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator

ATTRIBUTES = frozenset(
    {
        "attempt", "error_code", "execution_id", "gpu_seconds", "job_id", "job_status", "run_id", "stage", "worker_id",
    }
)  # fmt: skip
"""The names that a span's attributes may have, each with the prefix `lora.`; any other is left out."""

EXTRA = "telemetry"
"""The extra of our package that installs the library."""

_MAX_CHARACTERS = 200
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class SpanContext:
    """Which span a span belongs to, as W3C Trace Context describes it: both ids are not 0."""

    trace_id: int
    span_id: int

    @property
    def traceparent(self) -> str:
        """The header `traceparent` (https://www.w3.org/TR/trace-context/)."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"


def context_of(run_id: str) -> SpanContext:
    """The context of a run's root span. The trace has the run's own id, so it is found by that."""
    digest = hashlib.sha256(f"lora run {run_id}".encode()).digest()
    try:
        trace_id = UUID(run_id).int
    except ValueError:
        trace_id = int.from_bytes(digest[:16])
    return SpanContext(trace_id or 1, int.from_bytes(digest[16:24]) or 1)


def parse_traceparent(text: str | None) -> SpanContext | None:
    """The context of such a header; None where it is not a valid one."""
    found = _TRACEPARENT.fullmatch(text) if text else None
    if found is None:
        return None
    context = SpanContext(int(found[1], 16), int(found[2], 16))
    return context if context.trace_id and context.span_id else None


def _valid_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and parse_traceparent(value) else None


Traceparent = Annotated[str | None, BeforeValidator(_valid_or_none)]
"""A `traceparent`. Any other value becomes None: no run fails for its trace."""


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Whether the usual variables of OpenTelemetry ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = environment.get("OTEL_TRACES_EXPORTER", "otlp").split(",")
    if "otlp" not in {exporter.strip().lower() for exporter in exporters}:
        return False
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(environment.get(name, "").strip() for name in names)


class Traces:
    """Records finished spans. Without a provider it records nothing, at no cost."""

    def __init__(self, provider: Any = None, ids: _Ids | None = None, *, problem: str | None = None) -> None:
        self._provider = provider
        self._ids = ids
        self._lock = threading.Lock()
        self.problem = problem
        """Why there are no traces though the variables ask for them, and what to do; None where there is no such."""

    @property
    def is_on(self) -> bool:
        """Whether spans are recorded."""
        return self._provider is not None

    def child_of(self, parent: SpanContext) -> SpanContext:
        """A new context in the same trace, for a span that gets children before it ends."""
        return SpanContext(parent.trace_id, random.getrandbits(64) or 1)

    def record(
        self,
        name: str,
        *,
        parent: SpanContext | None,
        own: SpanContext | None = None,
        began_at: float,
        ended_at: float | None = None,
        failed: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a span that has ended; never raises.

        `own` is its context where that is known (a root span has no `parent`, but an own context); times are Unix
        seconds, `ended_at` by default now.
        """
        if self._provider is None or self._ids is None:
            return
        own = own or self.child_of(parent or SpanContext(random.getrandbits(128) or 1, 1))
        began_at = min(began_at, ended_at := time.time() if ended_at is None else ended_at)
        try:
            with self._lock:
                self._ids.planned = own
                span = self._provider.get_tracer("lora").start_span(
                    name,
                    context=_otel_context(parent),
                    start_time=int(began_at * 1e9),
                    attributes=_allowed(attributes or {}),
                )
            if failed:
                span.set_status(_error_status())
            span.end(end_time=int(ended_at * 1e9))
        except Exception as error:
            # A fault of the library must not become one of the work. Its text may hold the exporter's address.
            logging.getLogger(__name__).debug("span not recorded (%s)", type(error).__name__)

    @contextmanager
    def spanning(self, name: str, parent: SpanContext, attributes: Mapping[str, Any]) -> Iterator[None]:
        """Record what is done until the context ends as a span; it has failed where an exception leaves it."""
        began_at, failed = time.time(), True
        try:
            yield
            failed = False
        finally:
            self.record(name, parent=parent, began_at=began_at, failed=failed, attributes=attributes)

    def flush(self, *, seconds: float) -> None:
        """Export what is recorded, for at most so many seconds."""
        if self._provider is not None:
            _within(seconds, self._provider.force_flush)

    def close(self, *, seconds: float) -> None:
        """Export what is recorded, for at most so many seconds; the rest is lost."""
        if self._provider is not None:
            _within(seconds, self._provider.shutdown)


def _within(seconds: float, work: Any) -> None:
    # The library's own limits are not kept, and a thread that does not end must not keep the process.
    thread = threading.Thread(target=work, name="traces", daemon=True)
    thread.start()
    thread.join(seconds)


def _allowed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"lora.{name}": value if isinstance(value, bool | int | float) else str(value)[:_MAX_CHARACTERS]
        for name, value in attributes.items()
        if value is not None and name in ATTRIBUTES
    }


class _Ids:
    """Gives spans the ids that were planned for them. The methods are those of the library's `IdGenerator`."""

    planned = SpanContext(1, 1)

    def generate_span_id(self) -> int:
        return self.planned.span_id

    def generate_trace_id(self) -> int:
        return self.planned.trace_id

    def is_trace_id_random(self) -> bool:
        return False


def _otel_context(parent: SpanContext | None) -> Any:
    from opentelemetry import trace
    from opentelemetry.context import Context

    if parent is None:
        return Context()
    known = trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=trace.TraceFlags(_SAMPLED))
    return trace.set_span_in_context(trace.NonRecordingSpan(known), Context())


def _error_status() -> Any:
    from opentelemetry.trace import Status, StatusCode

    return Status(StatusCode.ERROR)


def open_traces(service: str, *, instance: str | None = None) -> Traces:
    """The traces that the variables of this process ask for; `service` is their name where no variable gives one.

    Where the library is missing, or can't work with the variables, there are none, and `problem` says why.
    """
    if not wants_traces(os.environ):
        return Traces()
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in {None, "", "http/protobuf"}:
        return Traces(problem="traces are sent by http/protobuf only: set OTEL_EXPORTER_OTLP_PROTOCOL to that")
    try:
        return _open(service, instance)
    except ImportError:
        return Traces(
            problem=f"OpenTelemetry's variables are set, but it is not installed: pip install '.[{EXTRA}]' in the clone"
        )
    except Exception as error:
        return Traces(problem=f"OpenTelemetry can't begin with its variables ({type(error).__name__}): check OTEL_…")


def _open(service: str, instance: str | None) -> Traces:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Failed exports are the collector's matter, and its log names addresses.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    own: dict[str, Any] = {"service.version": _own_version()}
    if instance is not None:
        own["service.instance.id"] = instance
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        own["service.name"] = service
    ids = _Ids()
    provider = TracerProvider(
        resource=Resource.create(own),
        id_generator=ids,  # type: ignore[arg-type]
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider, ids)


def _own_version() -> str:
    try:
        return version("lora-worker")
    except PackageNotFoundError:
        return "unknown"
