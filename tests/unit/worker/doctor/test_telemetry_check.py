"""The doctor names receivers and collectors that can't be used, and is silent where none is set."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import SecretStr

from lora_worker.doctor.check import Check
from lora_worker.doctor.telemetry import check_telemetry
from tests.scripted import make_services


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


async def checks_of(*urls: str) -> list[Check]:
    settings: Any = make_services().settings
    return await check_telemetry(
        make_services(settings=settings.model_copy(update={"notify_urls": tuple(map(SecretStr, urls))}))
    )


async def test_nothing_is_said_where_nothing_is_set() -> None:
    assert await checks_of() == []


async def test_known_receivers_and_collector_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    found = await checks_of("json://127.0.0.1:9/a", "json://127.0.0.1:9/b")
    assert [(check.subject, check.ok) for check in found] == [("notices", True), ("traces", True)]


async def test_unknown_receiver_is_a_fault_with_its_number() -> None:
    (check,) = await checks_of("json://127.0.0.1:9/a", "nonsense://hunter2")
    assert (check.subject, check.ok) == ("notices", False)
    assert "number 2" in check.finding + check.remedy
    assert "hunter2" not in check.finding + check.remedy


async def test_missing_library_is_a_fault_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    found = await checks_of("json://127.0.0.1:9/a")
    assert [(check.subject, check.ok) for check in found] == [("notices", False), ("traces", False)]
    assert [check.remedy for check in found] == [
        # Not by name: what has it on PyPI is not ours.
        "pip install '.[notify]' in the clone",
        "pip install '.[telemetry]' in the clone",
    ]


async def test_protocol_that_is_not_spoken_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    (check,) = await checks_of()
    assert check.remedy == "set OTEL_EXPORTER_OTLP_PROTOCOL to that"
