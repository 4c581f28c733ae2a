"""The application for tests: one new user, who uploads, queues, cancels and reads the pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from sandbox.application import DATASETS_BUCKET, Application
from sandbox.supabase.project import Project

BASE_MODEL = "standin"
DATASET_WORD = "Zebrafinch"
"""A text of every dataset and of nothing else: where it appears, text of a dataset has leaked."""

LINE = json.dumps(
    {
        "messages": [
            {"role": "user", "content": f"{DATASET_WORD} question"},
            {"role": "assistant", "content": f"{DATASET_WORD} answer"},
        ]
    }
).encode()
PAIRS = 4
ENDED = frozenset({"completed", "failed", "cancelled"})

_HYPERPARAMETERS = {"base_model": BASE_MODEL, "learning_rate": 1e-4, "batch_size": 4, "epochs": 2, "rank": 8}
_CHART_ROWS = 100
"""The metrics page shows at most so many points."""


class User(Application):
    """A user of the application, new for the test. Reads what the pages read, with the user's own rights."""

    def __init__(self, project: Project, folder: Path) -> None:
        super().__init__(project, project.create_user(f"{uuid4().hex}@example.com"))
        self._folder = folder

    def upload(self, content: bytes = b"\n".join([LINE] * PAIRS), **columns: Any) -> str:
        """Store a file as a validated dataset, or as one with other `columns`; the dataset's id."""
        file = self._folder / "Zebras.jsonl"
        file.write_bytes(content)
        return self.add_dataset(file, pairs=PAIRS, **columns)

    def remove_file(self, dataset_id: str) -> None:
        """Delete the dataset's file and leave its row."""
        paths = [f"{self.user_id}/{dataset_id}/Zebras.jsonl"]
        self._service.request(
            "DELETE", f"/storage/v1/object/{DATASETS_BUCKET}", json={"prefixes": paths}
        ).raise_for_status()

    def queue(
        self, dataset_id: str | None = None, *, gpu_config: dict[str, Any] | None = None, **hyperparameters: Any
    ) -> str:
        """Queue a valid job with the given changes; returns its id."""
        chosen = {**_HYPERPARAMETERS, **hyperparameters}
        return self.queue_job(dataset_id or self.upload(), chosen, pairs=PAIRS, gpu_config=gpu_config)

    def cancel(self, job_id: str) -> bool:
        """Cancel by the database's function, with the user's own token."""
        answer = self._client.post("/rest/v1/rpc/cancel_training_job", json={"job_id": job_id})
        answer.raise_for_status()
        return answer.json() is True

    def cancel_by_update(self, job_id: str) -> None:
        """Cancel by a plain update, as a route of the application with the service's key."""
        self._service.patch(f"/rest/v1/training_jobs?id=eq.{job_id}", json={"status": "cancelled"}).raise_for_status()

    def chart(self, job_id: str) -> list[dict[str, Any]]:
        """The points that the metrics page draws."""
        return self._read("metrics_points", job_id=f"eq.{job_id}", order="timestamp.asc", limit=str(_CHART_ROWS))

    def costs(self, job_id: str) -> list[dict[str, Any]]:
        """The job's cost records."""
        return self._read("cost_records", job_id=f"eq.{job_id}", order="recorded_at.asc")

    def notices(self, job_id: str) -> list[str]:
        """The kinds of the job's notifications, sorted."""
        rows = self._read("notifications", user_id=f"eq.{self.user_id}")
        return sorted(row["type"] for row in rows if row["metadata"].get("job_id") == job_id)

    def artifact(self, job_id: str) -> dict[str, Any]:
        """The job's model artifact."""
        (row,) = self._read("model_artifacts", job_id=f"eq.{job_id}")
        return row

    def stored(self, path: str) -> bytes | None:
        """The bytes of an object in the adapters' bucket, or None if there is none."""
        answer = self._service.get(f"/storage/v1/object/lora-models/{path}")
        return answer.content if answer.status_code == 200 else None

    def overwrite(self, path: str, content: bytes) -> None:
        """Overwrite an object in the adapters' bucket."""
        headers = {"content-type": "application/octet-stream", "x-upsert": "true"}
        self._service.post(
            f"/storage/v1/object/lora-models/{path}", content=content, headers=headers
        ).raise_for_status()

    def _read(self, table: str, **query: str) -> list[dict[str, Any]]:
        answer = self._client.get(f"/rest/v1/{table}", params=query)
        answer.raise_for_status()
        rows: list[dict[str, Any]] = answer.json()
        return rows
