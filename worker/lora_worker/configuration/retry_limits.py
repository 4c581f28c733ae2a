"""How often and how patiently failed runs are tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How often and how patiently faults are retried."""

    max_attempts: int
    max_infrastructure_failures: int
    base_seconds: float
    max_seconds: float
    rng: random.Random = field(default_factory=random.Random)
