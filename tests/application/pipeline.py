"""The application's newer queue for tests: its tables, its rows, and every update of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg.errors import DeadlockDetected
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from tests.database.rows import Database, Row
from tests.project import ROOT

_GRANTS = b"""
grant all on public.pipeline_training_jobs, public.pipeline_training_metrics, public.deploy_webhook_calls
  to anon, authenticated, service_role
"""
_SCHEMA = ROOT / "tests" / "data" / "pipeline_schema.sql"

# Every version of a row that an update wrote, oldest first.
_HISTORY = """
create table public.pipeline_history (number bigserial, job_id uuid, row jsonb);
create function public.note_pipeline_update() returns trigger language plpgsql security definer as $$
begin
  insert into public.pipeline_history (job_id, row) values (new.id, to_jsonb(new));
  return null;
end
$$;
create trigger note_pipeline_update after update on public.pipeline_training_jobs
  for each row execute function public.note_pipeline_update();
"""

_REMOVED = """
drop table public.pipeline_history, public.deploy_webhook_calls, public.pipeline_training_metrics,
           public.pipeline_training_jobs;
drop function public.note_pipeline_update, public.call_deploy_webhook;
"""

OURS = {
    "status", "progress", "current_epoch", "current_step", "total_steps", "current_loss", "current_learning_rate",
    "tokens_per_second", "runpod_job_id", "final_loss", "training_time_seconds", "actual_cost", "adapter_file_path",
    "started_at", "completed_at", "updated_at", "error_message",
}  # fmt: skip
"""The columns that a worker may write; all others belong to other programs."""


class Pipeline:
    """The newer queue of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self) -> None:
        """Make the application's tables."""
        self._database.connection.execute(_SCHEMA.read_bytes())
        # Projects granted all tables to everybody until 2026-10-30, and these tables are older than that.
        self._database.connection.execute(_GRANTS)
        self._database.connection.execute(_HISTORY)

    def remove(self) -> None:
        """Drop the tables."""
        # The last call of a worker that was just killed may hold one of them, and want another that is dropped already.
        for attempt in Retrying(
            retry=retry_if_exception_type(DeadlockDetected), stop=stop_after_attempt(5), reraise=True
        ):
            with attempt:
                self._database.connection.execute(_REMOVED)

    def queue(self, **columns: Any) -> UUID:
        """Queue a job as the application's route does; columns that are not given have the schema's defaults."""
        given = {"job_name": "Zebras", "engine_id": "e1", "engine_name": "Engine", "epochs": 2, **columns}
        names, marks = ", ".join(given), ", ".join(["%s"] * len(given))
        made = f"insert into pipeline_training_jobs ({names}) values ({marks}) returning id"
        return self._database.row(made, *given.values())["id"]

    def job(self, job_id: UUID) -> Row:
        return self._database.row("select * from pipeline_training_jobs where id = %s", job_id)

    def cancel(self, job_id: UUID) -> None:
        """The application's own update."""
        self._database.rows(
            "update pipeline_training_jobs set status = 'cancelled', completed_at = now() where id = %s", job_id
        )

    def history(self, job_id: UUID) -> list[Row]:
        """The row after each update."""
        rows = self._database.rows("select row from pipeline_history where job_id = %s order by number", job_id)
        return [row["row"] for row in rows]

    def metrics(self, job_id: UUID) -> list[Row]:
        """What the metrics route reads, in its order."""
        query = "select * from pipeline_training_metrics where job_id = %s order by measured_at, step_number, metric_id"
        return self._database.rows(query, job_id)

    def webhook_calls(self, job_id: UUID) -> int:
        """How many times the job's deployment was started."""
        return len(self._database.rows("select 1 from deploy_webhook_calls where job_id = %s", job_id))

    def costs(self, job_id: UUID) -> list[Row]:
        """The job's cost records."""
        query = "select * from cost_records where details->>'job_id' = %s order by recorded_at"
        return self._database.rows(query, str(job_id))
