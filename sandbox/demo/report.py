"""Reads the results of a job from database and storage, and prints them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_contract.protocol import MANIFEST_NAME, Manifest
from sandbox.errors import DemoError
from sandbox.supabase.project import Project

_MODELS_BUCKET = "lora-models"
_PLOT_WIDTH, _PLOT_HEIGHT = 78, 16

# The application stores only the current stage of a job, so the demo adds a trigger that records each change.
_STAGE_HISTORY = """
create schema sandbox;
create table sandbox.stages (
  id bigint generated always as identity, job_id uuid, stage text, at timestamptz default clock_timestamp()
);
create function sandbox.note_stage() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  if tg_op = 'INSERT' or new.current_stage is distinct from old.current_stage then
    insert into sandbox.stages (job_id, stage) values (new.id, new.current_stage);
  end if;
  return null;
end $$;
create trigger note_stage after insert or update on public.training_jobs
  for each row execute function sandbox.note_stage();
"""

_STAGES = """
select stage, coalesce(extract(epoch from lead(at) over (order by id) - at), 0)::float8 as seconds
from sandbox.stages where job_id = %s order by id
"""


@dataclass(frozen=True)
class JobReport:
    """The results of a job, from database and storage. Losses are in nats per token, sizes in bytes."""

    status: str
    error_message: str | None
    progress: float
    final_cost: float
    stages: list[tuple[str, float]]
    """The stages in order, each with the seconds until the next one."""
    losses: list[tuple[int, float]]
    """Step and training loss of every stored point."""
    files: dict[str, int]
    """Name and size of every file of the artifact; empty if there is no artifact."""
    cost_records: int
    notifications: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return the content of `demo-report.json`."""
        seconds: dict[str, float] = {}
        for stage, lasted in self.stages:
            seconds[stage] = round(seconds.get(stage, 0) + lasted, 3)
        return {
            "job_status": self.status,
            "stages": list(seconds),
            "metrics_points": len(self.losses),
            "final_training_loss": self.losses[-1][1] if self.losses else None,
            "first_training_loss": self.losses[0][1] if self.losses else None,
            "artifact_files": self.files,
            "cost_records": self.cost_records,
            "notifications": self.notifications,
            "seconds": seconds,
        }


def record_stages(database_url: str) -> None:
    """Make the database record every change of a job's stage from now on."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_STAGE_HISTORY)


def read_report(project: Project, job_id: str, files: dict[str, int]) -> JobReport:
    """Read the results of a job that has ended; `files` is what `fetch_artifact` returned."""
    with psycopg.connect(project.database_url, row_factory=dict_row) as connection:

        def rows(query: str) -> list[dict[str, Any]]:
            return connection.execute(query.encode(), [job_id]).fetchall()

        job = rows("select * from public.training_jobs where id = %s")[0]
        points = rows("select step, training_loss from public.metrics_points where job_id = %s order by step")
        notices = "select type from public.notifications where metadata->>'job_id' = %s order by created_at, id"
        return JobReport(
            status=job["status"],
            error_message=job["error_message"],
            progress=float(job["progress"]),
            final_cost=float(job["final_cost"] or 0),
            stages=[(row["stage"], row["seconds"]) for row in rows(_STAGES)],
            losses=[(row["step"], float(row["training_loss"])) for row in points],
            files=files,
            cost_records=len(rows("select id from public.cost_records where job_id = %s")),
            notifications=[row["type"] for row in rows(notices)],
        )


def fetch_artifact(project: Project, artifact_id: str, folder: Path) -> dict[str, int]:
    """Download an artifact and compare every file with its manifest; returns name and size of each file.

    Raises:
        DemoError: a file is missing, or differs from the manifest or the artifact's row.
    """
    with psycopg.connect(project.database_url) as connection:
        query = "select user_id, artifacts from public.model_artifacts where id = %s"
        row = connection.execute(query, [artifact_id]).fetchone()
    if row is None:
        raise DemoError(f"the artifact {artifact_id} has no row in model_artifacts")
    prefix, listed = f"{row[0]}/{artifact_id}/", row[1]
    with project.client() as client:
        _save(client, prefix + MANIFEST_NAME, folder / MANIFEST_NAME)
        manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        for file in manifest.files:
            if listed.get(file.name) != prefix + file.path:
                raise DemoError(f"the artifact's row does not say where {file.name} is")
            if _save(client, prefix + file.path, folder / file.path) != (file.bytes, file.sha256):
                raise DemoError(f"{file.name} in the storage is not the file that the manifest describes")
    return {file.name: file.bytes for file in manifest.files}


def show(report: JobReport, console: Console) -> None:
    """Print the loss curve and a summary."""
    _plot(report.losses, console)
    summary = Table("", "", show_header=False, box=None)
    first, last = report.losses[0][1], report.losses[-1][1]
    size = sum(report.files.values())
    for label, value in (
        ("job", f"{report.status}, {report.progress:.0f} %"),
        ("training loss", f"{first:.2f} → {last:.2f} ({(last / first - 1) * 100:+.0f} %), {len(report.losses)} points"),
        ("artifact", f"{len(report.files)} files, {size / 1e6:.1f} MB, every sha256 as in the manifest"),
        ("cost", f"${report.final_cost:.2f}, {report.cost_records} record"),
        ("notifications", ", ".join(report.notifications)),
        ("seconds", ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.stages if seconds)),
    ):
        summary.add_row(f"[bold]{label}[/bold]", escape(value))
    console.print(summary)


def _plot(points: list[tuple[int, float]], console: Console) -> None:
    from plotext import figure  # type: ignore[import-untyped]

    figure.clear()
    figure.plot_size(_PLOT_WIDTH, _PLOT_HEIGHT)
    figure.title("training loss by step")
    figure.draw(figure.signal(*zip(*points, strict=True), marker="braille").lines())
    figure.show(colorless=not console.is_terminal)


def _save(client: httpx.Client, path: str, target: Path) -> tuple[int, str]:
    """Download one object; returns its size in bytes and its sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with client.stream("GET", f"/storage/v1/object/{_MODELS_BUCKET}/{path}") as answer, target.open("wb") as file:
        if answer.is_error:
            raise DemoError(f"{target.name} is missing in the storage")
        for chunk in answer.iter_bytes():
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    return size, digest.hexdigest()
