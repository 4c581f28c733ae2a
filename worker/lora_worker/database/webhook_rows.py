"""Rows about outgoing webhooks, as the database's functions answer them."""

from __future__ import annotations

from uuid import UUID

from typing_extensions import TypedDict


class WebhookDelivery(TypedDict):
    """Answer of `claim_webhook_deliveries`: an event that is to be sent to an endpoint now."""

    event: str
    """The `webhook-id`."""
    endpoint: str
    type: str
    body: str
    attempt: int
    lease_token: UUID


class WebhookOutcome(TypedDict):
    """Argument of `note_webhook_delivery`."""

    delivered: bool
    gone: bool
    status: int | None
    problem: str | None
    retry_after_seconds: float | None


class WebhookFilter(TypedDict, total=False):
    """Argument of `replay_webhook_events`: one of the first three, and perhaps an endpoint."""

    event: str
    failed: bool
    since: str
    endpoint: str


class WebhookFailure(TypedDict):
    """An event that an endpoint has not taken."""

    event: str
    type: str
    job_id: UUID
    state: str
    attempts: int
    status: int | None
    problem: str | None
    next_at: str | None
    settled_at: str | None
    """When it was given up."""


class WebhookState(TypedDict):
    """Answer of `training_webhook_state`: an endpoint, and what of its events is left."""

    name: str
    is_enabled: bool
    added_at: str
    """Events of before were not sent to it."""
    seen_at: str
    failing_since: str | None
    last_delivered_at: str | None
    problem: str | None
    waiting: int
    given_up: int
    oldest_waiting_at: str | None
    failures: list[WebhookFailure]
