"""Checks who may read the tables and call the functions."""

from __future__ import annotations

from lora_worker.database.functions import TRAINER_FUNCTIONS
from lora_worker.database.rest import ANON, Rest, closed_functions
from lora_worker.doctor.check import Check, as_check
from lora_worker.doctor.project import GUARDED_TABLES, open_tables
from lora_worker.errors import ServiceError
from lora_worker.services import Services


async def check_rights(services: Services) -> list[Check]:
    """Check what the publishable key allows: everybody can read it in the application's pages."""
    settings = services.settings
    key = settings.supabase_publishable_key.get_secret_value()
    rest = Rest(settings.supabase_url, key, http=services.http, caller=ANON)
    closed = await closed_functions(rest, TRAINER_FUNCTIONS)
    if closed:
        return [as_check("rights", problem) for problem in closed]
    explained = await _explained_tables(services)
    shown = [table for table in GUARDED_TABLES if table not in explained and await rest.shows_rows(table)]
    if shown:
        text = f"the publishable key reads rows of {', '.join(shown)}"
        return [Check("rights", False, text, "run `lora-worker migrate`; drop policies that let everybody in")]
    if explained.intersection(GUARDED_TABLES):
        return []
    return [Check("rights", True, "the publishable key calls the trainer's functions and reads no row")]


async def _explained_tables(services: Services) -> set[str]:
    try:
        return open_tables(await services.queue.project_report())
    except ServiceError:
        return set()  # The check of the project says why.
