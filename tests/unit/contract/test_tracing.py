"""Traces: one for each run, found by its id, never in the way; nothing is imported where none are wanted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from lora_contract.protocol import Request
from lora_contract.tracing import Traces, context_of, open_traces, parse_traceparent, wants_traces
from tests.processes.collector import Collector
from tests.processes.waiting import PATIENCE_SECONDS
from tests.project import ROOT
from tests.unit.trainer.project import request_input

RUN = str(uuid4())
VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def open_to(collector: Collector, environment: pytest.MonkeyPatch) -> Traces:
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    traces = open_traces("lora-worker", instance="w1")
    assert traces.is_on
    return traces


# ── ids ─────────────────────────────────────────────────────────────────────────────────────────────


def test_trace_is_found_by_the_id_of_its_run() -> None:
    context = context_of(RUN)
    assert context == context_of(RUN)
    assert f"{context.trace_id:032x}" == UUID(RUN).hex
    assert parse_traceparent(context.traceparent) == context
    assert context.span_id != context_of(str(uuid4())).span_id
    assert context_of("no uuid").trace_id == context_of("no uuid").trace_id != 0


@pytest.mark.parametrize(
    "text",
    [
        None, "", "00", VALID + "-more", VALID.upper(), VALID.replace("00-", "01-", 1), "x" * 100_000,
        f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", 7, ["00"],
    ],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_wrong_trace_context_fails_no_run(text: object) -> None:
    assert Request.model_validate(request_input(traceparent=text)).traceparent is None


def test_trace_context_travels_with_the_request() -> None:
    assert Request.model_validate(request_input(traceparent=VALID)).traceparent == VALID


# ── when ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "console,otlp"}, True),
    ],
)
def test_usual_variables_decide_whether_there_are_traces(variables: dict[str, str], wanted: bool) -> None:
    assert wants_traces(variables) is wanted


def test_worker_imports_no_library_that_is_not_wanted(environment: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; import lora_worker.commands.run, lora_worker.duties.daemon, lora_worker.services;"
        "from lora_contract.tracing import open_traces; assert not open_traces('x').is_on;"
        "print([name for name in sys.modules if name.split('.')[0] in {'opentelemetry', 'apprise', 'requests'}])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert answer.stdout.strip() == "[]"


def test_missing_library_is_named_and_the_work_goes_on(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    environment.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    traces = open_traces("lora-worker")
    assert traces.problem is not None
    assert "pip install '.[telemetry]' in the clone" in traces.problem
    traces.record("run", parent=None, began_at=0)


def test_protocol_that_is_not_spoken_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert "http/protobuf" in (open_traces("lora-worker").problem or "")


# ── spans ───────────────────────────────────────────────────────────────────────────────────────────


def test_spans_arrive_with_ids_times_and_allowed_attributes(
    collector: Collector, environment: pytest.MonkeyPatch
) -> None:
    traces, root = open_to(collector, environment), context_of(RUN)
    own = traces.child_of(root)
    with pytest.raises(ValueError, match="text"), traces.spanning("settle", own, {"run_id": RUN}):
        raise ValueError("text of a dataset")
    traces.record("execution", parent=root, own=own, began_at=20.0, ended_at=30.0)
    attributes = {"job_status": "x" * 500, "gpu_seconds": 1.5, "error_code": None, "dataset": "Calm money"}
    traces.record("run", parent=None, own=root, began_at=10.0, ended_at=40.5, attributes=attributes)
    traces.close(seconds=PATIENCE_SECONDS)
    spans = {span.name: span for span in collector.spans}
    assert {span.trace_id for span in spans.values()} == {UUID(RUN).hex}
    run, execution, settle = spans["run"], spans["execution"], spans["settle"]
    assert (run.parent_id, run.began_at, run.ended_at) == ("", 10.0, 40.5)
    assert run.span_id == f"{root.span_id:016x}" == execution.parent_id
    assert settle.parent_id == execution.span_id
    assert [run.failed, settle.failed] == [False, True]
    assert run.attributes == {"lora.job_status": "x" * 200, "lora.gpu_seconds": 1.5}
    assert run.service == "lora-worker"
    assert b"Calm money" not in b"".join(collector.bodies)
    assert b"text of a dataset" not in b"".join(collector.bodies)


def test_name_of_the_service_is_the_variables(collector: Collector, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_SERVICE_NAME", "our-trainings")
    traces = open_to(collector, environment)
    traces.record("run", parent=None, own=context_of(RUN), began_at=1.0)
    traces.close(seconds=PATIENCE_SECONDS)
    assert [span.service for span in collector.spans] == ["our-trainings"]


def test_span_never_ends_before_it_began(collector: Collector, environment: pytest.MonkeyPatch) -> None:
    traces = open_to(collector, environment)
    # The clocks of a database and of a worker differ.
    traces.record("queue", parent=context_of(RUN), began_at=50.0, ended_at=40.0)
    traces.close(seconds=PATIENCE_SECONDS)
    (span,) = collector.spans
    assert (span.began_at, span.ended_at) == (40.0, 40.0)


def test_collector_that_hangs_holds_up_neither_work_nor_end(
    collector: Collector, environment: pytest.MonkeyPatch
) -> None:
    collector.may_answer.clear()
    traces = open_to(collector, environment)
    # More than the queue takes, while the exporter waits for its answer.
    for number in range(5000):
        traces.record("preflight", parent=context_of(RUN), began_at=float(number))
    assert collector.is_asked.wait(PATIENCE_SECONDS)
    began_at = time.monotonic()
    traces.flush(seconds=0.05)
    traces.close(seconds=0.05)
    assert time.monotonic() - began_at < PATIENCE_SECONDS


@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "not a url", "http://user:hunter2@127.0.0.1:9"])
def test_collector_that_is_not_there_costs_only_the_spans(
    environment: pytest.MonkeyPatch, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where)
    environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20c2VjcmV0")
    traces = open_traces("lora-worker")
    traces.record("run", parent=None, own=context_of(RUN), began_at=1.0)
    traces.close(seconds=PATIENCE_SECONDS)
    shown = capfd.readouterr()
    assert "hunter2" not in shown.out + shown.err
    assert "c2VjcmV0" not in shown.out + shown.err


def test_traces_that_are_off_record_nothing() -> None:
    traces = Traces()
    traces.record("run", parent=None, began_at=1.0)
    with traces.spanning("settle", context_of(RUN), {}):
        pass
    traces.flush(seconds=1)
    traces.close(seconds=1)
    assert not traces.is_on
