"""Finds settings that are valid each on its own but contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LEAST_USEFUL_SECONDS = 300.0
"""The shortest GPU time for which a run is launched. Loading a model alone takes minutes."""

PUBLISHING_SECONDS = 900.0
"""How long a run may take, whatever the job's limits have left, where an earlier one has trained the adapter: it loads
the base, tries the adapter and uploads it. All runs of a job together exceed its limits by no more than this."""


def contradictions(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence, without its full stop, for each contradiction; it names the environment variables.

    `settings` are the values of `Settings` by the names of its fields.
    """
    if settings["default_base_model"] not in settings["base_models"]:
        yield (
            "LORA_WORKER_DEFAULT_BASE_MODEL is not among LORA_WORKER_BASE_MODELS, so every job that names no base "
            "would fail: add it there, or choose one of them"
        )
    if settings["public_url"] and not settings["http_port"]:
        yield (
            "LORA_WORKER_PUBLIC_URL is set, but there is no port that it could lead to: set LORA_WORKER_HTTP_PORT, or "
            "no public address"
        )
    for less, more, why in _ORDER:
        if settings[less] > settings[more]:
            yield f"LORA_WORKER_{less.upper()} is more than LORA_WORKER_{more.upper()}: {why}"


_ORDER = (
    ("poll_seconds", "lease_seconds", "a worker would look at its runs less often than their leases run out"),
    ("poll_seconds", "lost_seconds", "a run would be given up as lost before a worker looks at it again"),
    ("poll_seconds", "cancel_seconds", "a cancel would be called unconfirmed before a worker looks again"),
    ("poll_seconds", "grant_wait_seconds", "a trainer would leave before a worker sees that it wants to upload"),
    ("retry_base_seconds", "retry_max_seconds", "the first wait before a retry would be longer than the longest"),
)
"""Pairs of settings of which the first must not be larger than the second, and what would happen otherwise."""
