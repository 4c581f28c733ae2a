"""The limits for retries of failed runs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How often a job's failed runs are retried, and how long the waits between them are.

    The wait begins at `base_seconds`, doubles with each attempt up to `max_seconds`, and gets random jitter from `rng`.
    """

    max_attempts: int
    max_infrastructure_failures: int
    base_seconds: float
    max_seconds: float
    rng: random.Random = field(default_factory=random.Random)
