"""Checks that the endpoints that are told of jobs' events take them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lora_contract.words import counted
from lora_worker.database.webhook_rows import WebhookState
from lora_worker.doctor.check import Check
from lora_worker.services import Services


async def check_webhooks(services: Services) -> list[Check]:
    """Check the endpoints of these settings by what the database knows of them. Nothing is sent.

    Raises:
        ServiceError: the database does not answer.
    """
    names = [endpoint.name for endpoint in services.settings.webhook_endpoints]
    return examine_endpoints(names, await services.queue.webhook_state()) if names else []


def examine_endpoints(names: Collection[str], states: Sequence[WebhookState]) -> list[Check]:
    """Check endpoints by their rows. One without a row is new, which is no fault."""
    checks = []
    for state in states:
        if state["name"] not in names:
            continue
        name = state["name"]
        if not state["is_enabled"]:
            remedy = f"take it out of LORA_WORKER_WEBHOOKS, or `lora-worker webhooks enable {name}`"
            checks.append(Check("webhooks", False, f"{name} has answered 410 and gets no events", remedy))
        elif state["failing_since"]:
            finding = f"{name} takes no events: {state['problem']}; {state['waiting']} wait"
            checks.append(
                Check("webhooks", False, finding, "`lora-worker webhooks list` shows them; mend the endpoint")
            )
        elif state["given_up"]:
            finding = f"{name} has missed {counted(state['given_up'], 'event')}"
            checks.append(Check("webhooks", None, finding, "`lora-worker webhooks replay --failed` sends them again"))
    return checks or [Check("webhooks", True, f"{counted(len(names), 'endpoint')} of webhooks, and none fails")]
