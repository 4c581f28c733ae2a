"""The checks of `lora-worker doctor`: database, rights, storage and endpoint, each finding with its remedy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_contract.grants import lifetime_seconds
from lora_contract.words import counted
from lora_worker.database.functions import TRAINER_FUNCTIONS, WORKER_FUNCTIONS
from lora_worker.database.rest import ANON, Rest, closed_functions
from lora_worker.errors import (
    SchemaMismatchError,
    SchemaMissingError,
    ServiceError,
    ServiceRefusedError,
)
from lora_worker.launchers.endpoints import launches_at, unowned_work
from lora_worker.services import Services
from lora_worker.storage.buckets import (
    LEAST_MODEL_BYTES,
    OWN_BUCKETS,
    artifact_faults,
    missing_bucket,
    project_fault,
    publicity_faults,
)
from lora_worker.storage.objects import PROBE_NAME

if TYPE_CHECKING:
    from rich.console import Console

_TABLES = (
    *("datasets", "training_jobs", "metrics_points", "model_artifacts", "cost_records", "notifications"),
    *("training_runs", "training_launches", "dataset_validations", "training_terms"),
    *("training_workers", "training_waiting_users", "training_progress"),
    *("training_endpoints", "training_breakers", "training_holds"),
)

_LEAST_URL_SECONDS = 900.0
"""How long upload URLs must be valid: long enough to upload the files of an adapter one after the other. A hosted
project gives 7,200 seconds."""

_START = "start one: `lora-worker run`"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check. `remedy` is empty if nothing is wrong; `ok` is None if the check was not made."""

    subject: str
    ok: bool | None
    finding: str
    remedy: str = ""


def print_checks(checks: Iterable[Check], console: Console) -> None:
    """Print a line for each check: whether it holds, what was found, and the remedy where there is one."""
    for check in checks:
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[check.ok]
        remedy = f" → {check.remedy}" if check.remedy else ""
        console.print(f"{mark} {check.subject}: {check.finding}{remedy}", soft_wrap=True)


async def examine(services: Services) -> list[Check]:
    """Run every check, also after one has failed. Checks that would only fail by the same cause are skipped."""
    checks: list[Check] = []
    skipped: frozenset[str] = frozenset()
    for subject, check in _CHECKS:
        if subject in skipped:
            checks.append(Check(subject, None, "not looked at: mend the database's fault first"))
            continue
        try:
            checks += await check(services)
        except Exception as error:
            # The doctor is called when something is wrong, so even an unexpected error must not end the other checks.
            known = isinstance(error, ServiceError)
            text = str(error) if known else f"an answer could not be understood ({type(error).__name__})"
            checks.append(Check(subject, False, text, _remedy_of(subject, error, services)))
            skipped |= _checks_affected_by(subject, error)
    return checks


def _as_check(subject: str, problem: str) -> Check:
    """Make a check of an error's sentence. What stands after its colon is the remedy."""
    finding, _, remedy = problem.partition(": ")
    return Check(subject, False, finding, remedy)


def _checks_affected_by(subject: str, error: Exception) -> frozenset[str]:
    """Return the checks that would be misleading after an error of the database check.

    With a wrong key, for example, buckets look as if they were missing; at a wrong address, functions do.
    """
    if subject != "database":
        return frozenset()
    if isinstance(error, ServiceRefusedError):
        # Storage is called with the same key.
        return frozenset({"storage", "launches"}) if error.status == 401 else frozenset({"launches"})
    if isinstance(error, SchemaMismatchError) and not isinstance(error, SchemaMissingError):
        return frozenset({"launches"})
    return frozenset({"rights", "storage", "launches"})


def _remedy_of(subject: str, error: Exception, services: Services) -> str:
    if isinstance(error, SchemaMismatchError) or (isinstance(error, ServiceRefusedError) and error.status == 403):
        # The error's own sentence says what to do.
        return ""
    if subject == "database" and not isinstance(error, ServiceRefusedError):
        return "check SUPABASE_URL, and that this machine reaches it"
    return services.launcher.guide.check if subject == "endpoint" else _REMEDIES[subject]


_REMEDIES = {
    "database": "check SUPABASE_SERVICE_ROLE_KEY, and that it is of the project of SUPABASE_URL",
    "rights": "check SUPABASE_PUBLISHABLE_KEY, and that it is of the project of SUPABASE_URL",
    "storage": "check that Storage is on in the project and that the key may use it",
    "launches": "see what the database and the endpoint answer",
}


async def _check_database(services: Services) -> list[Check]:
    version = await services.queue.check_schema()
    closed = await closed_functions(services.queue.rest, WORKER_FUNCTIONS)
    if closed:
        return [_as_check("database", problem) for problem in closed]
    health = await services.queue.health()
    checks = [Check("database", True, f"functions of version {version}, {health['queued']} queued jobs")]
    checks += examine_workers(health)
    if health["expired_leases"]:
        text = f"{health['expired_leases']} live runs have no worker"
        checks.append(Check("leases", False, text, "start a worker: it adopts them at once"))
    if health["stray_launches"]:
        text = f"{health['stray_launches']} launches cost money without a run"
        checks.append(Check("launches", False, text, "a running worker cancels them within a minute"))
    return checks


def examine_workers(health: Mapping[str, Any]) -> list[Check]:
    """Check that workers run and do their work, by what they have last reported to the database."""
    if health["no_worker"]:
        # Before the first start this is no fault, unless jobs are waiting.
        is_missed = health["had_worker"] or health["queued"]
        return [Check("workers", False if is_missed else None, health["no_worker"], _START)]
    checks = []
    running = [worker for worker in health["workers"] if not worker["single_pass"]]
    if running:
        slots, held = (sum(int(worker[key]) for worker in running) for key in ("slots", "held"))
        checks.append(Check("workers", True, f"{len(running)} running, {held} of {slots} slots in use"))
    for worker in health["workers"]:
        if worker["single_pass"]:
            minutes = worker["seen_seconds_ago"] / 60
            checks.append(Check("workers", True, f"last pass {minutes:.0f} min ago (`run --once`)"))
        if worker["problem"]:
            checks.append(Check("workers", False, f"{worker['name']}: {worker['problem']}", "see its log"))
    return checks


async def _check_rights(services: Services) -> list[Check]:
    """Check what the publishable key allows: everybody can read it in the application's pages."""
    settings = services.settings
    key = settings.supabase_publishable_key.get_secret_value()
    rest = Rest(settings.supabase_url, key, http=services.http, caller=ANON)
    closed = await closed_functions(rest, TRAINER_FUNCTIONS)
    if closed:
        return [_as_check("rights", problem) for problem in closed]
    open_tables = [table for table in _TABLES if await rest.shows_rows(table)]
    if open_tables:
        text = f"the publishable key reads rows of {', '.join(open_tables)}"
        return [Check("rights", False, text, "run `lora-worker migrate`; drop policies that let everybody in")]
    return [Check("rights", True, "the publishable key calls the trainer's functions and reads no row")]


async def _check_storage(services: Services) -> list[Check]:
    found = {bucket["name"]: bucket for bucket in await services.storage.buckets()}
    public_key = services.settings.supabase_publishable_key.get_secret_value()
    artifacts_bucket = services.settings.artifacts_bucket
    checks = []
    for name in dict.fromkeys((artifacts_bucket, *OWN_BUCKETS[1:])):
        if name not in found:
            fault = missing_bucket(name)
            checks.append(Check("storage", False, fault.finding, fault.remedy))
            continue
        checks += examine_bucket(found[name], holds_artifacts=name == artifacts_bucket)
        if name == artifacts_bucket:
            checks += await _check_uploads(services, found[name])
        if await services.storage.opens_to(name, public_key):
            text = f"the publishable key lists the files of {name}"
            remedy = "drop the policies on storage.objects that let `anon` or `public` read this bucket"
            checks.append(Check("storage", False, text, remedy))
    return checks


def examine_bucket(bucket: Mapping[str, Any], *, holds_artifacts: bool) -> list[Check]:
    """Check that a bucket, as described by Storage, is private and can store the files that are uploaded there."""
    faults = publicity_faults(bucket) + (artifact_faults(bucket) if holds_artifacts else [])
    if faults:
        return [Check("storage", False, fault.finding, fault.remedy) for fault in faults]
    limit = bucket.get("file_size_limit")
    size = "of any size" if limit is None else f"up to {int(limit) / 1024**2:.0f} MB"
    return [Check("storage", True, f"the bucket {bucket['name']} is private and takes files {size}")]


async def _check_uploads(services: Services, bucket: Mapping[str, Any]) -> list[Check]:
    """Check what the bucket's description does not show: the project's size limit, and how long upload URLs live."""
    checks = []
    # If the bucket itself would refuse the file, the answer says nothing about the project's limit.
    can_probe = not artifact_faults(bucket)
    if can_probe and (fault := await project_fault(services.storage, bucket["name"], LEAST_MODEL_BYTES)):
        checks.append(Check("storage", False, fault.finding, fault.remedy))
    seconds = lifetime_seconds(await services.storage.sign_upload(bucket["name"], PROBE_NAME))
    return checks + ([] if seconds is None else [examine_lifetime(seconds)])


def examine_lifetime(seconds: float) -> Check:
    """Check that upload URLs are valid for long enough to upload the files of an adapter."""
    if seconds >= _LEAST_URL_SECONDS:
        return Check("storage", True, f"upload URLs live {seconds:.0f} s")
    text = f"upload URLs live {seconds:.0f} s: a trainer waits for new ones in the middle of its files"
    return Check("storage", False, text, "set UPLOAD_SIGNED_URL_EXPIRATION_TIME of the project's Storage to 7200")


async def _check_endpoint(services: Services) -> list[Check]:
    launcher = services.launcher
    seen = await launcher.health()
    if not seen.reachable or seen.problem:
        return [Check("endpoint", False, seen.problem or "not reachable", launcher.guide.check)]
    return [
        Check("endpoint", True, f"{counted(seen.workers, 'worker')}, {counted(seen.jobs_queued, 'job')} in its queue")
    ]


async def _check_launches(services: Services) -> list[Check]:
    """Check that every live launch can be reached at its endpoint, and that no job there belongs to no run."""
    health, launcher = await services.queue.health(), services.launcher
    checks = [Check("runs", False, f"the run {run['run_id']} can't go on: {run['problem']}", "see docs/reliability.md")
              for run in health["runs"] if run["problem"]]  # fmt: skip
    for row in health["endpoints"]:
        if row["launcher"] != launcher.name:
            text = f"{counted(row['launches'], 'launch', 'launches')} by {row['launcher']}, which this worker is not"
            checks.append(Check("launches", False, text, "start a worker that knows it"))
        elif row["endpoint"] not in {None, launcher.endpoint}:
            former = await launcher.health(row["endpoint"])
            text = f"{counted(row['launches'], 'launch', 'launches')} at {row['endpoint']}, a former endpoint"
            remedy = "" if former.reachable else launcher.guide.former_endpoint
            checks.append(Check("launches", former.reachable, text + _told(former.problem), remedy))
    seen = await launcher.health()
    launches = launches_at(launcher.endpoint, health)
    unowned = unowned_work(seen, launches, launcher.guide) if seen.reachable else None
    if unowned:
        checks.append(Check("launches", False, unowned, "ask again in a minute, then cancel them there"))
    return checks + [_held(breaker) for breaker in health["held"]["breakers"]]


def _told(problem: str | None) -> str:
    return f": {problem}" if problem else ""


def _held(breaker: Mapping[str, Any]) -> Check:
    what = f"the base model {breaker['name']}" if breaker["kind"] == "base_model" else "the image"
    text = (
        f"{counted(breaker['jobs'], 'job')} held: {what} failed at {breaker['endpoint']} for {breaker['users']} users "
        f"({breaker['error_code']}: {breaker['error_message']}); the next try is in {breaker['probe_in_seconds']:.0f} s"
    )
    return Check("held", False, text, f"mend it, then `lora-worker resume {breaker['name'] or breaker['endpoint']}`")


_CHECKS: tuple[tuple[str, Callable[[Services], Awaitable[list[Check]]]], ...] = (
    ("database", _check_database),
    ("rights", _check_rights),
    ("storage", _check_storage),
    ("endpoint", _check_endpoint),
    ("launches", _check_launches),
)
