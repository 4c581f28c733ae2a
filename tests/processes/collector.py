"""A collector of OpenTelemetry traces on this machine: OTLP over real HTTP, kept for the test to read."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.processes.waiting import PATIENCE_SECONDS


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it arrived: ids in hexadecimal, times in Unix seconds."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    began_at: float
    ended_at: float
    failed: bool
    attributes: dict[str, Any] = field(default_factory=dict)


class Collector:
    """Listens on 127.0.0.1 while the context is open."""

    def __init__(self, *, status: int = 200) -> None:
        self.bodies: list[bytes] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.is_asked = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.is_asked.set()
                collector.may_answer.wait(PATIENCE_SECONDS)
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    collector.bodies.append(body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def spans(self) -> list[CollectedSpan]:
        """All spans that have arrived."""
        return [span for body in tuple(self.bodies) for span in _read(body)]


def _read(body: bytes) -> list[CollectedSpan]:
    request = ExportTraceServiceRequest.FromString(body)
    found = []
    for resource in request.resource_spans:
        about = {one.key: one.value.string_value for one in resource.resource.attributes}
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            found.append(
                CollectedSpan(
                    name=span.name,
                    service=about["service.name"],
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    began_at=span.start_time_unix_nano / 1e9,
                    ended_at=span.end_time_unix_nano / 1e9,
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    attributes={one.key: _value(one.value) for one in span.attributes},
                )
            )
    return found


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))
