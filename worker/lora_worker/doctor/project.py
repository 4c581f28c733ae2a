"""Checks what the database says of itself: rights beyond those that are meant, other dispatchers, the clock.

The decisions are pure functions of the report (`training_project_report`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from lora_contract.words import counted
from lora_worker.database.functions import OPEN_FUNCTIONS, TRAINER_FUNCTIONS, USER_FUNCTIONS, WORKER_FUNCTIONS
from lora_worker.database.project_report import (
    CallableFunction,
    DefaultRight,
    OpenPolicy,
    OtherDispatcher,
    ProjectReport,
    ReportedTable,
)
from lora_worker.doctor.check import Check
from lora_worker.services import Services
from lora_worker.words import time_of

_MOST_SKEW_SECONDS = 30.0
"""Signed URLs and legacy keys carry times, and both sides compare those with their own clock."""

_OWN_PREFIX = "training_"
"""Every function of ours that only other functions call begins so."""

GUARDED_TABLES = (
    *("datasets", "training_jobs", "metrics_points", "model_artifacts", "cost_records", "notifications"),
    *("training_runs", "training_launches", "dataset_validations", "training_terms"),
    *("training_workers", "training_waiting_users", "training_progress", "training_results"),
    *("training_endpoints", "training_breakers", "training_holds", "training_operator_holds", "training_drains"),
    *("training_retries", "training_stages", "training_budgets", "training_reservations", "training_erased_costs"),
    *("training_served_removals", "training_serving_errands"),
    *("training_operator_notices", "training_speeds", "training_aliases", "training_alias_moves"),
    *("training_removed_aliases", "training_endpoint_releases"),
    *("training_webhook_endpoints", "training_webhook_events", "training_webhook_deliveries"),
    "pipeline_training_jobs",
)
"""The tables that nobody may read without signing in."""

_MOST_NAMED = 5


async def check_project(services: Services) -> list[Check]:
    """Check rights, policies, other dispatchers and the clock by the database's own report.

    Raises:
        ServiceError: the database does not answer.
    """
    asked_at = services.now()
    report = await services.queue.project_report()
    answered_at = services.now()
    return [
        *examine_clock(report["now"], asked_at, answered_at),
        *examine_callers(report["functions"]),
        *examine_tables(report["tables"]),
        *examine_policies(report["open_policies"]),
        *examine_default_rights(report["default_rights"]),
        *examine_dispatchers(report["other_dispatchers"], report["foreign_jobs"]),
    ]


def examine_clock(database_time: str, asked_at: datetime, answered_at: datetime) -> list[Check]:
    """Compare the database's clock with this machine's: the answer was made between the two times here."""
    there = time_of(database_time)
    if there is None:
        return [Check("clock", False, "the database's time could not be read", "run `lora-worker migrate`")]
    early, late = (asked_at - there).total_seconds(), (there - answered_at).total_seconds()
    skew = max(early, late)
    if skew <= _MOST_SKEW_SECONDS:
        return [Check("clock", True, "this machine's clock agrees with the database's")]
    text = f"this machine's clock is {skew:.0f} s {'ahead of' if early > late else 'behind'} the database's"
    return [Check("clock", False, text, "let it be set by the network (timedatectl set-ntp true)")]


def wanted_callers(name: str) -> set[str] | None:
    """Return the roles that are meant to call a function; None for a function that is not ours."""
    # Users may call some of the worker's functions, too.
    if name in USER_FUNCTIONS:
        return {"authenticated", "service_role"}
    if name in {function.name for function in WORKER_FUNCTIONS}:
        return {"service_role"}
    if name in {function.name for function in TRAINER_FUNCTIONS}:
        return {"anon", "service_role"}
    if name in OPEN_FUNCTIONS:
        return {"anon", "authenticated", "service_role"}
    return set() if name.startswith(_OWN_PREFIX) else None


def examine_callers(functions: Iterable[CallableFunction]) -> list[Check]:
    """Find functions of ours that a role may call besides those that are meant to."""
    open_to: dict[str, list[str]] = {}
    for function in functions:
        wanted = wanted_callers(function["name"])
        # What the service role may do beyond its functions, it can do by its key anyway.
        surplus = set(function["callers"]) - (wanted or set()) - {"service_role"}
        if wanted is not None and surplus:
            for role in sorted(surplus):
                open_to.setdefault(role, []).append(function["name"])
    return [
        Check(
            "rights",
            False,
            f"{role} may call {_some(names)}",
            f"run `lora-worker migrate`, or `revoke execute on function {names[0]} from public, {role}`",
        )
        for role, names in open_to.items()
    ]


def open_tables(report: ProjectReport) -> set[str]:
    """Return the tables of which the report already says why everybody can read them."""
    unguarded = {table["name"] for table in report["tables"] if not table["row_security"]}
    return unguarded | {policy["table"] for policy in report["open_policies"] if policy["schema"] == "public"}


def examine_tables(tables: Iterable[ReportedTable]) -> list[Check]:
    """Find tables without row level security: one grant is enough, and everybody reads them."""
    unguarded = [table["name"] for table in tables if table["name"] in GUARDED_TABLES and not table["row_security"]]
    if not unguarded:
        return []
    text = f"row level security is off on {_some(unguarded)}"
    return [Check("rights", False, text, f"run `alter table {unguarded[0]} enable row level security`")]


def examine_policies(policies: Iterable[OpenPolicy]) -> list[Check]:
    """Find policies on our tables and on stored files that let everybody with a role in.

    What a policy opens to anon in our buckets is left out: the storage checks try that.
    """
    return [
        Check(
            "rights",
            False,
            f"the policy “{policy['name']}” opens {policy['schema']}.{policy['table']} to every "
            f"{' or '.join(policy['roles'])} ({policy['command'].lower()})",
            "drop it, or let it compare a column with auth.uid()",
        )
        for policy in policies
        if policy["roles"] == ["authenticated"] or policy["table"] in GUARDED_TABLES
    ]


def examine_default_rights(rights: Iterable[DefaultRight]) -> list[Check]:
    """Note that new functions are open to everybody until they are closed by name, as our migrations do."""
    makers = sorted({right["maker"] for right in rights if right["objects"] == "functions"})
    if not makers:
        return []
    text = f"each new function that {_some(makers)} makes in public is open to anon (the default until 2026-10-30)"
    remedy = f"alter default privileges for role {makers[0]} in schema public revoke execute on functions from anon"
    return [Check("rights", None, text, remedy)]


def examine_dispatchers(others: Iterable[OtherDispatcher], foreign_jobs: int) -> list[Check]:
    """Find other programs that take jobs from the same tables: a job would be trained, and paid, twice."""
    checks = [
        Check(
            "dispatchers",
            False,
            f"the {other['kind']} “{other['name']}” works on {other['table']}, too",
            "switch it off if it starts trainings (docs/switching.md): a job would be paid twice",
        )
        for other in others
    ]
    if foreign_jobs:
        text = f"{counted(foreign_jobs, 'job')} began that no worker has taken: another program dispatches this queue"
        checks.append(Check("dispatchers", False, text, "switch it off (docs/switching.md)"))
    return checks


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
