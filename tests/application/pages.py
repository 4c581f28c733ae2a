"""The reading side of the application's pages: their queries, and what they do with each value.

A page that would print `$NaN` or `undefined`, or break on a value, raises a `PageError` here that names it.
The queries run with the user's own rights, and rows come as JSON made by Postgres, as PostgREST gives them.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Any
from uuid import UUID

from tests.database.rows import Database, Row

STATUSES = ("queued", "initializing", "running", "completed", "failed", "cancelled")
"""The monitor page has a colour for each of these statuses, and none for any other."""

DATASET_STATUSES = ("uploading", "validating", "ready", "error")

_CHART_ROWS = 100
_CONVERGENCE = ("excellent", "good", "fair", "poor", "overfit", "unknown")
_METRICS = ("training_loss", "validation_loss", "learning_rate", "throughput", "gpu_utilization")
_NONSENSE = re.compile(r"\bundefined\b|\bnull\b|\bNone\b|\bInfinity\b|\$NaN|^NaN$")
_STORED_PATH = re.compile(r"[0-9a-f-]{36}/[0-9a-f-]{36}/[^/].*")

NOTICES = {
    "job_queued": ("Training Job Queued", "low", "/training/jobs/{job_id}"),
    "job_started": ("Training Started", "medium", "/training/jobs/{job_id}"),
    "job_completed": ("Training Complete", "high", "/training/jobs/{job_id}"),
    "job_failed": ("Training Failed", "high", "/training/jobs/{job_id}"),
    "job_cancelled": ("Job Cancelled", "medium", "/training/jobs/{job_id}"),
    "artifact_ready": ("Model Ready for Download", "high", "/models/{artifact_id}"),
    "dataset_ready": ("Dataset Ready", "medium", "/datasets/"),
    # The worker's own types; the application shows types that it does not know like any other.
    "job_requeued": ("Training Will Be Retried", "low", "/training/jobs/{job_id}"),
    "dataset_error": ("Dataset Validation Failed", "high", "/datasets/"),
}


class PageError(AssertionError):
    """A page would show nonsense or break."""


def _fail(key: str, value: Any, wanted: str) -> PageError:
    return PageError(f"{key} is {value!r}, and the page needs {wanted}")


def number(row: Row, key: str, least: float = float("-inf"), most: float = float("inf")) -> float:
    """A value on which the page calls `.toFixed`, or with which it computes."""
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise _fail(key, value, f"a number from {least} to {most}")
    return value


def number_if_any(row: Row, key: str, least: float = float("-inf")) -> float | None:
    """Like the function above, for a value whose null the page shows as a dash."""
    return None if row.get(key) is None else number(row, key, least)


def text(row: Row, key: str) -> str:
    """A value that the page prints."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip() or _NONSENSE.search(value):
        raise _fail(key, value, "words")
    return value


def moment(row: Row, key: str) -> datetime:
    """A value from which the page makes a `Date`."""
    try:
        return datetime.fromisoformat(text(row, key))
    except ValueError:
        raise _fail(key, row.get(key), "a time") from None


def moment_if_any(row: Row, key: str) -> datetime | None:
    """Like the function above, for a value whose null the page shows as a dash."""
    return None if row.get(key) is None else moment(row, key)


def one_of(row: Row, key: str, known: tuple[str, ...]) -> str:
    """A value that the page looks up in a table of its own."""
    if row.get(key) not in known:
        raise _fail(key, row.get(key), f"one of {', '.join(known)}")
    return str(row[key])


def part(row: Row, key: str) -> Row:
    """An object inside a row."""
    if not isinstance(row.get(key), dict):
        raise _fail(key, row.get(key), "an object")
    return dict(row[key])


class Pages:
    """The pages as one user sees them."""

    def __init__(self, database: Database, user_id: str) -> None:
        self._database, self._user_id = database, user_id

    def _read(self, query: str, *values: Any) -> list[Row]:
        connection = self._database.connection
        with connection.transaction():
            # Hosted Supabase reads the first setting, the lightweight local one the second.
            connection.execute(
                "select set_config('request.jwt.claims', json_build_object('sub', %s::text, 'role',"
                " 'authenticated')::text, true), set_config('request.jwt.claim.sub', %s, true)",
                [self._user_id, self._user_id],
            )
            connection.execute("set local role authenticated")
            return [row["row"] for row in self._database.rows(query, *values)]

    # ── /training/jobs and /training/jobs/[id] ──────────────────────────────────────────────────────

    def jobs(self) -> list[Row]:
        """The list of jobs, the newest first."""
        rows = self._read(
            "select to_jsonb(j) || jsonb_build_object('dataset', (select jsonb_build_object('name', d.name)"
            " from datasets d where d.id = j.dataset_id)) as row"
            " from training_jobs j where user_id = %s order by created_at desc", self._user_id,
        )  # fmt: skip
        for row in rows:
            one_of(row, "status", STATUSES)
            number(row, "progress", 0, 100)
            number(row, "final_cost" if row["final_cost"] else "current_cost", 0)
            text(part(row, "dataset"), "name")
            moment(row, "created_at")
        return rows

    def monitor(self, job_id: str) -> Row:
        """The page of one job; it reads the long shape."""
        (row,) = self._read(
            "select to_jsonb(j) || jsonb_build_object('dataset', (select jsonb_build_object('id', d.id, 'name', d.name,"
            " 'format', d.format, 'total_training_pairs', d.total_training_pairs, 'total_tokens', d.total_tokens)"
            " from datasets d where d.id = j.dataset_id)) as row"
            " from training_jobs j where id = %s", job_id,
        )  # fmt: skip
        status = one_of(row, "status", STATUSES)
        number(row, "progress", 0, 100)
        number(row, "current_epoch", 0, number(row, "total_epochs", 1))
        number(row, "current_step", 0, number(row, "total_steps", 1))
        number(row, "estimated_total_cost", 0)
        number(row, "current_cost", 0)
        text(part(row, "dataset"), "name")
        moment(row, "created_at")
        moment_if_any(row, "started_at")
        moment_if_any(row, "estimated_completion_at")
        metrics = part(row, "current_metrics")
        for key in metrics.keys() & set(_METRICS):
            number(metrics, key)
        self._long_shape(row)
        if status in {"completed", "failed", "cancelled"}:
            moment(row, "completed_at")
            number(row, "final_cost", 0)
        if status == "failed":
            text(row, "error_message")
        return row

    @staticmethod
    def _long_shape(row: Row) -> None:
        chosen, gpu = part(row, "hyperparameters"), part(row, "gpu_config")
        text(chosen, "base_model")
        number(chosen, "learning_rate", 0)
        for key in ("batch_size", "num_epochs", "lora_rank", "lora_alpha"):
            number(chosen, key, 1)
        number(chosen, "lora_dropout", 0, 1)
        text(gpu, "gpu_type")
        number(gpu, "num_gpus", 1)
        number(gpu, "gpu_memory_gb", 1)
        number(gpu, "cost_per_gpu_hour", 0)

    def chart(self, job_id: str) -> list[Row]:
        """The curve: the route returns the first hundred points only."""
        rows = self._read(
            "select to_jsonb(m) as row from metrics_points m where job_id = %s order by timestamp asc limit %s",
            job_id, _CHART_ROWS,
        )  # fmt: skip
        for row in rows:
            number(row, "step", 1)
            number(row, "epoch", 1)
            number(row, "training_loss")
            number(row, "learning_rate", 0)
            number_if_any(row, "validation_loss")
        return rows

    # ── /models and /models/[id] ────────────────────────────────────────────────────────────────────

    def models(self) -> list[Row]:
        """The list of models, the best first."""
        rows = self._read(
            "select to_jsonb(a) as row from model_artifacts a where user_id = %s and deleted_at is null"
            " order by quality_metrics->'overall_score' desc", self._user_id,
        )  # fmt: skip
        for row in rows:
            self._model(row)
        return rows

    def _model(self, row: Row) -> None:
        text(row, "name")
        text(row, "version")
        one_of(row, "status", ("stored", "deployed", "archived"))
        quality = part(row, "quality_metrics")
        number(quality, "overall_score", 1, 5)
        one_of(quality, "convergence_quality", _CONVERGENCE)
        number(quality, "final_training_loss")
        number_if_any(quality, "final_validation_loss")
        number_if_any(quality, "perplexity", 1)
        summary = part(row, "training_summary")
        for key in ("epochs_completed", "total_steps", "training_duration_hours", "total_cost"):
            number(summary, key, 0)
        configuration = part(row, "configuration")
        text(configuration, "preset_id")
        # This page reads the short shape, the monitor page the long one.
        chosen, gpu = part(configuration, "hyperparameters"), part(configuration, "gpu_config")
        number(chosen, "learning_rate", 0)
        for key in ("batch_size", "epochs", "rank"):
            number(chosen, key, 1)
        text(gpu, "type")
        number(gpu, "count", 1)
        for name, path in part(row, "artifacts").items():
            # The download route signs each value as a path of the bucket.
            if not isinstance(path, str) or not _STORED_PATH.fullmatch(path) or not path.endswith(f"/{name}"):
                raise _fail(f"artifacts.{name}", path, "a path in the bucket")

    # ── /costs, the bell, /datasets/[id] ────────────────────────────────────────────────────────────

    def costs(self) -> list[Row]:
        """The cost page, the newest first."""
        rows = self._read(
            "select to_jsonb(c) as row from cost_records c where user_id = %s order by recorded_at desc", self._user_id
        )
        for row in rows:
            text(row, "cost_type")
            number(row, "amount", 0)
            UUID(text(row, "job_id"))
            moment(row, "recorded_at")
            date.fromisoformat(text(row, "billing_period"))
            details = part(row, "details")
            text(details, "gpu_type")
            number(details, "gpu_count", 1)
            number(details, "duration_hours", 0)
        return rows

    def notifications(self) -> list[Row]:
        """The notifications behind the bell, newest first."""
        rows = self._read(
            "select to_jsonb(n) as row from notifications n where user_id = %s order by created_at desc", self._user_id
        )
        for row in rows:
            kind = one_of(row, "type", tuple(NOTICES))
            title, priority, url = NOTICES[kind]
            if (row["title"], row["priority"]) != (title, priority):
                raise _fail(f"title and priority of {kind}", (row["title"], row["priority"]), f"{title}, {priority}")
            text(row, "message")
            wanted = url.format_map(part(row, "metadata"))
            if not text(row, "action_url").startswith(wanted):
                raise _fail(f"action_url of {kind}", row["action_url"], wanted)
            moment(row, "created_at")
        return rows

    def dataset(self, dataset_id: str) -> Row:
        """The page of one dataset."""
        (row,) = self._read("select to_jsonb(d) as row from datasets d where id = %s", dataset_id)
        status = one_of(row, "status", DATASET_STATUSES)
        for problem in row["validation_errors"] or []:
            number(problem, "line", 1)
            text(problem, "error")
        if status == "ready":
            for key in ("total_training_pairs", "total_tokens", "avg_turns_per_conversation", "avg_tokens_per_turn"):
                number(row, key, 0)
            moment(row, "validated_at")
        if status == "error":
            text(row, "error_message")
        return row
