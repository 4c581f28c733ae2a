"""The calls about outgoing webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from lora_worker.database import functions
from lora_worker.database.caller import Caller
from lora_worker.database.webhook_rows import WebhookDelivery, WebhookFilter, WebhookOutcome, WebhookState


class WebhookCalls(Caller):
    """The methods of `DatabaseCalls` about outgoing webhooks. They raise only `ServiceError`s."""

    async def claim_webhook_deliveries(
        self, endpoints: Sequence[str], max_deliveries: int, lease_seconds: int
    ) -> list[WebhookDelivery]:
        """Claim what is due to these endpoints, up to `max_deliveries` for each; other workers leave it for so long."""
        # Not retried: what a lost answer gave away is due again when its lease has run out.
        return await self._call(
            functions.CLAIM_WEBHOOK_DELIVERIES,
            attempts=1,
            endpoints=list(endpoints),
            max_deliveries=max_deliveries,
            lease_seconds=lease_seconds,
        )

    async def note_webhook_delivery(
        self, event: str, endpoint: str, lease_token: UUID, outcome: WebhookOutcome
    ) -> bool:
        """Write down what came of a delivery; False if the lease has run out, and another worker has it."""
        return await self._call(
            functions.NOTE_WEBHOOK_DELIVERY, event=event, endpoint=endpoint, lease_token=lease_token, outcome=outcome
        )

    async def replay_webhook_events(self, wanted: WebhookFilter) -> int:
        """Let events be delivered again; returns how many deliveries that makes."""
        return await self._call(functions.REPLAY_WEBHOOK_EVENTS, filter=wanted)

    async def enable_webhook_endpoint(self, name: str) -> bool:
        """Let an endpoint that has answered 410 get events again; False if there is none of this name to enable."""
        return await self._call(functions.ENABLE_WEBHOOK_ENDPOINT, name=name)

    async def webhook_state(self) -> list[WebhookState]:
        """Return the endpoints, and what of their events is left."""
        return await self._call(functions.TRAINING_WEBHOOK_STATE)
