"""The check of what a worker would send: notices to operators, and traces."""

from __future__ import annotations

from lora_contract.tracing import open_traces
from lora_worker.doctor.check import Check, as_check
from lora_worker.errors import SettingsError
from lora_worker.observability.outbox import open_outbox
from lora_worker.services import Services


async def check_telemetry(services: Services) -> list[Check]:
    """Check that receivers and collector that are set can be used; nothing is sent to them. None set: no check."""
    return [*_check_notices(services), *_check_traces()]


def _check_notices(services: Services) -> list[Check]:
    try:
        outbox = open_outbox(services.settings)
    except SettingsError as error:
        return [as_check("notices", str(error))]
    count = len(services.settings.notify_urls)
    return [Check("notices", True, f"{count} receivers of notices are known")] if outbox.is_open else []


def _check_traces() -> list[Check]:
    traces = open_traces("lora-worker")
    traces.close(seconds=1.0)
    if traces.problem:
        return [as_check("traces", traces.problem)]
    return [Check("traces", True, "traces are sent as OpenTelemetry's variables say")] if traces.is_on else []
