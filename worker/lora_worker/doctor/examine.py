"""Runs the checks in their order, and leaves out those that would only repeat an earlier fault."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from lora_worker.configuration.settings import Settings
from lora_worker.doctor.account import check_account
from lora_worker.doctor.aliases import check_aliases
from lora_worker.doctor.check import Check
from lora_worker.doctor.database import check_database
from lora_worker.doctor.endpoint import EndpointChecks
from lora_worker.doctor.inference import check_inference
from lora_worker.doctor.keys import examine_keys
from lora_worker.doctor.pods import check_pods
from lora_worker.doctor.project import check_project
from lora_worker.doctor.rights import check_rights
from lora_worker.doctor.storage import check_storage
from lora_worker.doctor.telemetry import check_telemetry
from lora_worker.doctor.webhooks import check_webhooks
from lora_worker.errors import (
    SchemaMismatchError,
    SchemaMissingError,
    ServiceError,
    ServiceRefusedError,
    SettingsError,
)
from lora_worker.launchers.unopened import UnopenedLauncher
from lora_worker.services import Services, open_services


async def examine_all(settings: Settings) -> list[Check]:
    """Open the services and run every check; where an endpoint can't be opened, those that need none."""
    try:
        async with open_services(settings) as services:
            return [Check("settings", True, "all set"), *await examine(services)]
    except SettingsError as error:
        wrong = wrong_settings(error)
        # The database can be looked at all the same: whoever mends two faults wants to be told of both.
        async with open_services(settings, launcher=UnopenedLauncher(settings.launcher, str(error))) as services:
            return [wrong, *await examine(services, unopened=True)]


def wrong_settings(error: SettingsError) -> Check:
    """The finding that a setting is missing or wrong."""
    remedy = "set it right in the environment or in .env; `lora-worker settings` lists all of them"
    return Check("settings", False, str(error), remedy)


async def examine(services: Services, *, unopened: bool = False) -> list[Check]:
    """Run every check, also after one has failed. Checks that would only fail by the same cause are skipped.

    `unopened`: the endpoint could not be opened, so the checks that look at it are left out.
    """
    checks = examine_keys(services.settings, services.now())
    skipped = dict.fromkeys(_OF_ENDPOINTS, "the settings") if unopened else {}
    for subject, check in _checks(services):
        if subject in skipped:
            checks.append(Check(subject, None, f"not looked at: mend the fault of {skipped[subject]} first"))
            continue
        try:
            checks += await check(services)
        except Exception as error:
            # The doctor is called when something is wrong, so even an unexpected error must not end the other checks.
            known = isinstance(error, ServiceError)
            text = str(error) if known else f"an answer could not be understood ({type(error).__name__})"
            checks.append(Check(subject, False, text, _remedy_of(subject, error, services)))
            skipped |= dict.fromkeys(_checks_affected_by(subject, error), "the database")
    return checks


def _checks_affected_by(subject: str, error: Exception) -> frozenset[str]:
    """Return the checks that would be misleading after an error of the database check.

    With a wrong key, for example, buckets look as if they were missing; at a wrong address, functions do.
    """
    if subject != "database":
        return frozenset()
    if isinstance(error, ServiceRefusedError):
        # Storage is called with the same key.
        return (
            frozenset({"project", "storage", "launches", "aliases", "webhooks"})
            if error.status == 401
            else frozenset({"project", "launches", "aliases", "webhooks"})
        )
    if isinstance(error, SchemaMismatchError) and not isinstance(error, SchemaMissingError):
        return frozenset({"project", "launches", "aliases", "webhooks"})
    return frozenset({"project", "rights", "storage", "launches", "aliases", "webhooks"})


def _remedy_of(subject: str, error: Exception, services: Services) -> str:
    if isinstance(error, SchemaMismatchError) or (isinstance(error, ServiceRefusedError) and error.status == 403):
        # The error's own sentence says what to do.
        return ""
    if subject == "database" and not isinstance(error, ServiceRefusedError):
        return "check SUPABASE_URL, and that this machine reaches it"
    return services.launcher.guide.check if subject == "endpoint" else _REMEDIES[subject]


_REMEDIES = {
    "database": "check SUPABASE_SERVICE_ROLE_KEY, and that it is of the project of SUPABASE_URL",
    "project": "see what the database answers to training_project_report",
    "rights": "check SUPABASE_PUBLISHABLE_KEY, and that it is of the project of SUPABASE_URL",
    "storage": "check that Storage is on in the project and that the key may use it",
    "account": "check that this machine reaches the API of its console",
    "pods": "check that this machine reaches RunPod's REST API",
    "inference": "check that this machine reaches RunPod's REST API",
    "telemetry": "check LORA_WORKER_NOTIFY_URLS and the variables OTEL_…",
    "aliases": "see what the database answers to list_training_aliases",
    "webhooks": "see what the database answers to training_webhook_state",
    "launches": "see what the database and the endpoint answer",
}


_OF_ENDPOINTS = ("endpoint", "launches", "account", "pods")


def _checks(services: Services) -> tuple[tuple[str, Callable[[Services], Awaitable[list[Check]]]], ...]:
    endpoints = EndpointChecks(services)
    return (
        ("database", check_database),
        ("project", check_project),
        ("rights", check_rights),
        ("storage", check_storage),
        ("endpoint", endpoints.check_endpoint),
        ("launches", endpoints.check_launches),
        ("aliases", check_aliases),
        ("webhooks", check_webhooks),
        ("telemetry", check_telemetry),
        ("account", check_account),
        ("pods", check_pods),
        ("inference", check_inference),
    )
