"""Checks who may read the tables and call the functions."""

from __future__ import annotations

from lora_worker.database.functions import TRAINER_FUNCTIONS
from lora_worker.database.rest import ANON, Rest, closed_functions
from lora_worker.doctor.check import Check, as_check
from lora_worker.services import Services

_TABLES = (
    *("datasets", "training_jobs", "metrics_points", "model_artifacts", "cost_records", "notifications"),
    *("training_runs", "training_launches", "dataset_validations", "training_terms"),
    *("training_workers", "training_waiting_users", "training_progress"),
    *("training_endpoints", "training_breakers", "training_holds"),
)


async def check_rights(services: Services) -> list[Check]:
    """Check what the publishable key allows: everybody can read it in the application's pages."""
    settings = services.settings
    key = settings.supabase_publishable_key.get_secret_value()
    rest = Rest(settings.supabase_url, key, http=services.http, caller=ANON)
    closed = await closed_functions(rest, TRAINER_FUNCTIONS)
    if closed:
        return [as_check("rights", problem) for problem in closed]
    open_tables = [table for table in _TABLES if await rest.shows_rows(table)]
    if open_tables:
        text = f"the publishable key reads rows of {', '.join(open_tables)}"
        return [Check("rights", False, text, "run `lora-worker migrate`; drop policies that let everybody in")]
    return [Check("rights", True, "the publishable key calls the trainer's functions and reads no row")]
