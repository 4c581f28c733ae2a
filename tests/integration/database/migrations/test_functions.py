"""The functions that the worker and the trainer call are those of the migrations, argument by argument."""

from __future__ import annotations

from lora_worker.database.functions import TRAINER_FUNCTIONS, WORKER_FUNCTIONS
from tests.database.rows import Database


def test_each_function_exists_once_with_the_arguments_under_test(db: Database) -> None:
    """An overload of an earlier release makes every call of its name ambiguous to PostgREST (PGRST203)."""
    wanted = {function.name: sorted(function.probe) for function in (*WORKER_FUNCTIONS, *TRAINER_FUNCTIONS)}
    found = db.rows(
        "select proname as name, coalesce(proargnames, '{}') as arguments from pg_proc"
        " where pronamespace = 'public'::regnamespace and proname = any(%s)", list(wanted),
    )  # fmt: skip
    assert sorted((row["name"], sorted(row["arguments"])) for row in found) == sorted(wanted.items())
