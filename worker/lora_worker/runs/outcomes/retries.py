"""Whether and when a failed run, or a launch that was not accepted, is tried again."""

from __future__ import annotations

from lora_contract.error_codes import Fault
from lora_worker.configuration.retry_limits import RetryLimits
from lora_worker.runs.outcomes.failures import Failure

_MAX_WAIT_SECONDS = 600.0


def retry_after(
    failure: Failure, *, transient_failures: int, infrastructure_failures: int, limits: RetryLimits
) -> float | None:
    """Seconds until the next attempt; None when there is none. The counts are of earlier runs.

    Full jitter over the upper half of an exponential backoff, so that jobs that failed together do
    not come back together (Brooker, "Exponential backoff and jitter", AWS 2015).
    """
    if failure.fault is Fault.PERMANENT:
        return None
    if failure.fault is Fault.TRANSIENT:
        count, limit = transient_failures, limits.max_attempts - 1
    else:
        count, limit = infrastructure_failures, limits.max_infrastructure_failures
    if count >= limit:
        return None
    ceiling = min(limits.base_seconds * 2.0**count, limits.max_seconds)
    return ceiling * limits.rng.uniform(0.5, 1.0)


def exhausted(failure: Failure, attempts: int) -> Failure:
    """The failure in the words that its user reads when no attempt is left."""
    if failure.fault is Fault.PERMANENT or attempts <= 1:
        return failure
    text = f"{failure.message} {attempts} attempts were made; start the job again later, or ask support."
    return Failure(failure.code, failure.fault, text)


def patience_seconds(base_seconds: float, tries: int) -> float:
    """How long a launch waits after so many tries: the base, doubled with each further try up to ten minutes."""
    # The exponent is bounded before the power is computed: after a week of refusals the result would fit no float.
    doublings = min(tries - 1, 16)
    return min(base_seconds * 2.0**doublings, max(_MAX_WAIT_SECONDS, base_seconds))
