"""The Prometheus metrics of `/metrics`, except for those of live runs, which `duties.run_metrics` reads at each scrape.

Every label has few values: names of our own code, codes of a known list, and statuses of HTTP in classes. No text of a
user, a dataset or a container is a label.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from prometheus_client import Counter, Gauge, Histogram, Info

from lora_contract.error_codes import Fault

BUILD = Info("lora_worker_build", "The release of this worker")

HELD_RUNS = Gauge("lora_worker_held_runs", "Runs this worker holds a lease for")
CLAIMED = Counter("lora_worker_claimed_total", "Jobs claimed")
ADOPTED = Counter("lora_worker_adopted_total", "Runs adopted from other workers")
LAUNCHED = Counter("lora_worker_launches_total", "Launches sent, by what came of them", ["answer"])
SETTLED = Counter(
    "lora_worker_settled_total", "Runs settled, by the job's status afterwards and the run's error code",
    ["job_status", "error_code"],
)  # fmt: skip
RETRIES = Counter("lora_worker_retries_total", "Runs that failed and are tried again, by the kind of fault", ["fault"])
GPU_SECONDS = Counter("lora_worker_gpu_seconds_total", "GPU time of the runs that this worker settled")
SPEND = Counter("lora_worker_spend_usd_total", "What the runs cost that this worker settled, in USD")
LEASES_LOST = Counter("lora_worker_leases_lost_total", "Leases lost to another worker or to time")

FAULTS_SEEN = Counter(
    "lora_worker_service_faults_total", "Work that was put off because a service failed, by service", ["service"]
)
API_ERRORS = Counter(
    "lora_worker_api_errors_total",
    "Calls answered with a status of 400 and above, or not at all (timeout, unreachable)",
    ["service", "operation", "status"],
)
API_SECONDS = Histogram(
    "lora_worker_api_call_seconds", "Time until a service began to answer", ["service", "operation"],
    buckets=(0.05, 0.25, 1, 5, 20),
)  # fmt: skip

CYCLE_SECONDS = Histogram(
    "lora_worker_cycle_seconds", "Length of one poll cycle over all held runs",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60),
)  # fmt: skip
ROUNDS = Counter("lora_worker_rounds_total", "Rounds of the worker's duties, by how they ended", ["duty", "result"])
LAST_ROUND = Gauge(
    "lora_worker_last_round_timestamp_seconds", "When a round of the duty last ended well, in Unix seconds", ["duty"]
)

QUEUE_DEPTH = Gauge("lora_worker_queue_depth", "Queued jobs in the database")
OLDEST_WAIT_SECONDS = Gauge("lora_worker_oldest_wait_seconds", "How long the oldest queued job has waited")
JOBS_HELD = Gauge("lora_worker_jobs_held", "Queued jobs that wait because their base model or image failed", ["kind"])
EXPIRED_LEASES = Gauge("lora_worker_expired_leases", "Live runs in the database that no worker holds")
STRAYS = Gauge("lora_worker_stray_launches", "Launches in the database that belong to no live run")

ENDPOINT_REACHABLE = Gauge("lora_worker_endpoint_reachable", "1 if the launcher answers for the endpoint, else 0")
ENDPOINT_WORKERS = Gauge("lora_worker_endpoint_workers", "Machines of the endpoint, by their state", ["state"])
ENDPOINT_QUEUE = Gauge("lora_worker_endpoint_queue_depth", "Launches that wait for a machine of the endpoint")

NOTICES = Counter(
    "lora_worker_notices_total", "Notices to operators, by what came of each receiver's", ["kind", "result"]
)

WEBHOOKS = Counter("lora_worker_webhook_deliveries_total", "Events sent to endpoints, by what came of it", ["result"])
WAKE_UPS = Counter(
    "lora_worker_wake_ups_total", "Calls of launchers about changes of runs, by what came of it", ["result"]
)

WEBHOOK_RESULTS = ("delivered", "failed")
WAKE_UP_RESULTS = ("taken", "not_held", "refused", "limited")
LAUNCH_ANSWERS = ("accepted", "refused", "unavailable", "in_doubt")
JOB_STATUSES = ("completed", "failed", "cancelled", "queued")
ROUND_RESULTS = ("ok", "failed")
NOTICE_RESULTS = ("sent", "failed", "dropped")
ENDPOINT_STATES = ("ready", "running", "starting", "unhealthy")
HOLD_KINDS = ("base_model", "image")
_OF_ONE_LABEL: tuple[tuple[Counter | Gauge, tuple[str, ...]], ...] = (
    (LAUNCHED, LAUNCH_ANSWERS),
    (WEBHOOKS, WEBHOOK_RESULTS),
    (WAKE_UPS, WAKE_UP_RESULTS),
    (JOBS_HELD, HOLD_KINDS),
    (ENDPOINT_WORKERS, ENDPOINT_STATES),
)
_KNOWN_STATUSES = frozenset({400, 401, 403, 404, 406, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504, 520, 522, 540})


def status_label(status: int) -> str:
    """Return the label of an HTTP status: itself where it is a usual one, else its class, such as `4xx`."""
    if status in _KNOWN_STATUSES:
        return str(status)
    return f"{status // 100}xx" if 400 <= status < 600 else "other"


def count_settlement(
    job_status: str, *, error_code: str | None, fault: str | None, gpu_seconds: float, spend: float
) -> None:
    """Count a run that this worker settled; `error_code` is one of a known list, `spend` in USD."""
    SETTLED.labels(job_status, error_code or "none").inc()
    if job_status == "queued" and fault is not None:
        RETRIES.labels(fault).inc()
    # A counter takes no negative number, and a wrong clock must not end a settlement.
    GPU_SECONDS.inc(max(gpu_seconds, 0.0))
    SPEND.inc(max(spend, 0.0))


def show_zeroes(duties: Iterable[str], notices: Iterable[str]) -> None:
    """Show the counters that have a small number of labels from the start, as zeroes.

    Prometheus does not see the first increase of a counter that it has never seen before.
    """
    for status in JOB_STATUSES:
        SETTLED.labels(status, "none")
    for fault in Fault:
        if fault is not Fault.PERMANENT:
            RETRIES.labels(fault)
    for duty, result in product(duties, ROUND_RESULTS):
        ROUNDS.labels(duty, result)
    for kind, result in product(notices, NOTICE_RESULTS):
        NOTICES.labels(kind, result)
    for gauge_or_counter, labels in _OF_ONE_LABEL:
        for label in labels:
            gauge_or_counter.labels(label)
