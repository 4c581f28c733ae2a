"""Delivers the events of jobs to the endpoints of the settings: at least once, and those of a job in order.

The database keeps the events and says which are due. A worker that ends between a delivery and its note leaves a lease
that runs out: then the event is delivered again, with the same id, by which receivers know it.
"""

from __future__ import annotations

import asyncio

import httpx
import structlog

from lora_contract.crash_points import crash_point
from lora_worker.configuration.webhooks import WebhookEndpoint
from lora_worker.database.webhook_rows import WebhookDelivery
from lora_worker.duties.duty import RoundResult
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import WEBHOOKS
from lora_worker.services import Services
from lora_worker.webhooks.sending import SEND_SECONDS, Sent, open_sender, send

log = structlog.get_logger(__name__)

WEBHOOK_SECONDS = 5.0
"""Between two looks: as soon as the specification tries a failed delivery again."""
WEBHOOK_CALLS = 10
"""The most calls to the database of one round, one after another: five claims, and five times the notes at once."""
LONGEST_SENDING_SECONDS = WEBHOOK_CALLS / 2 * SEND_SECONDS

_MOST_CLAIMS = WEBHOOK_CALLS // 2
_MOST_AT_ONCE = 10
"""Deliveries to each endpoint side by side, each with a connection of its own (`MOST_CONNECTIONS`). One that does not
answer keeps the other endpoints waiting for their next ones, `SEND_SECONDS` at most."""
_LEASE_SECONDS = 300
"""Much longer than a delivery and its note may take, so that no other worker sends the same meanwhile."""


class Webhooks:
    """Delivers what is due."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._endpoints = {endpoint.name: endpoint for endpoint in services.settings.webhook_endpoints}

    @property
    def has_endpoints(self) -> bool:
        """Whether anybody is to be told."""
        return bool(self._endpoints)

    async def run_once(self) -> RoundResult:
        """Deliver what is due, and the next event of a job as soon as the one before is delivered.

        Raises:
            ServiceError: the database did not answer; what was delivered without a note is delivered again.
        """
        due = await self._claim()
        if not due:
            # A sender costs a set-up of TLS, and mostly there is nothing to send.
            return RoundResult()
        done = 0
        async with open_sender(self._services.settings) as http:
            for left in reversed(range(_MOST_CLAIMS)):
                done += await self._deliver(http, due)
                due = await self._claim() if left else []
                if not due:
                    break
        return RoundResult(done)

    async def _claim(self) -> list[WebhookDelivery]:
        return await self._services.queue.claim_webhook_deliveries(list(self._endpoints), _MOST_AT_ONCE, _LEASE_SECONDS)

    async def _deliver(self, http: httpx.AsyncClient, due: list[WebhookDelivery]) -> int:
        """Send these and note what came of each; returns how many were delivered."""
        async with asyncio.TaskGroup() as group:
            sent = [group.create_task(self._send(http, delivery)) for delivery in due]
        crash_point("worker.webhook.after_delivery")
        await asyncio.gather(*(self._note(delivery, task.result()) for delivery, task in zip(due, sent, strict=True)))
        return sum(task.result().is_delivered for task in sent)

    async def _send(self, http: httpx.AsyncClient, delivery: WebhookDelivery) -> Sent:
        endpoint: WebhookEndpoint = self._endpoints[delivery["endpoint"]]
        now = self._services.now().timestamp()
        return await send(http, endpoint, delivery["event"], delivery["body"], now=now)

    async def _note(self, delivery: WebhookDelivery, sent: Sent) -> None:
        name = delivery["endpoint"]
        WEBHOOKS.labels("delivered" if sent.is_delivered else "failed").inc()
        condition = f"webhook {name}"
        if sent.is_delivered:
            self._services.repeats.clear(condition)
        elif self._services.repeats.is_due(condition, sent.problem or ""):
            log.warning(
                "an event is not delivered", action=Action.WEBHOOK_NOT_DELIVERED, webhook=name,
                event_id=delivery["event"], type=delivery["type"], attempt=delivery["attempt"], status=sent.status,
                problem=sent.problem,
            )  # fmt: skip
        await self._services.queue.note_webhook_delivery(
            delivery["event"],
            name,
            delivery["lease_token"],
            {
                "delivered": sent.is_delivered,
                "gone": sent.is_gone,
                "status": sent.status,
                "problem": sent.problem,
                "retry_after_seconds": sent.retry_after_seconds,
            },
        )
