"""Does what the application does: stores a dataset, queues a job and reads its row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from sandbox.errors import SandboxError
from sandbox.supabase.project import Project

DATASETS_BUCKET = "lora-datasets"

_ESTIMATED_COST_DOLLARS = 1.0


class Application:
    """The application, used by one user: rows are written and read with the rights of this user."""

    def __init__(self, project: Project, user_id: str) -> None:
        self.user_id = user_id
        self._client = project.client(user_id)
        self._service = project.client()

    def add_dataset(self, file: Path, *, pairs: int, **columns: Any) -> str:
        """Upload a file and add a row for it; returns the dataset's id.

        The dataset counts as validated, unless `columns` say otherwise.

        Raises:
            SandboxError: Supabase refused.
        """
        dataset_id = str(uuid4())
        path = f"{self.user_id}/{dataset_id}/{file.name}"
        kind = "application/json" if file.suffix == ".json" else "application/x-jsonlines"
        with file.open("rb") as content:
            answer = self._service.post(
                f"/storage/v1/object/{DATASETS_BUCKET}/{path}", content=content, headers={"content-type": kind}
            )
        _check(answer, "store the dataset")
        row = {
            "id": dataset_id,
            "user_id": self.user_id,
            "name": file.stem[:200],
            "status": "ready",
            "training_ready": True,
            "storage_bucket": DATASETS_BUCKET,
            "storage_path": path,
            "file_name": file.name[:255],
            "file_size": file.stat().st_size,
            "total_training_pairs": pairs,
        }
        self._insert("datasets", **row | columns)
        return dataset_id

    def queue_job(
        self,
        dataset_id: str,
        hyperparameters: dict[str, Any],
        *,
        pairs: int,
        gpu_config: dict[str, Any] | None = None,
    ) -> str:
        """Add a queued job with the short keys that the application's route writes; returns the job's id.

        Raises:
            SandboxError: Supabase refused.
        """
        job_id = str(uuid4())
        epochs, batch_size = hyperparameters["epochs"], hyperparameters["batch_size"]
        self._insert(
            "training_jobs",
            id=job_id,
            user_id=self.user_id,
            dataset_id=dataset_id,
            preset_id="custom",
            hyperparameters=hyperparameters,
            gpu_config=gpu_config or {"type": "A100-80GB", "count": 1},
            total_epochs=epochs,
            # For a batch size of 0 the application computes Infinity, which becomes null in JSON.
            total_steps=math.ceil(pairs / batch_size) * epochs if batch_size else None,
            estimated_total_cost=_ESTIMATED_COST_DOLLARS,
            current_metrics={},
        )
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job's row as the application's monitor page reads it.

        Raises:
            SandboxError: Supabase refused.
        """
        query = {"id": f"eq.{job_id}", "select": "*,dataset:datasets(id,name,total_training_pairs)"}
        answer = self._client.get("/rest/v1/training_jobs", params=query)
        _check(answer, "read the job")
        rows: list[dict[str, Any]] = answer.json()
        return rows[0]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._service.close()

    def _insert(self, table: str, **row: Any) -> None:
        _check(self._client.post(f"/rest/v1/{table}", json=row), f"add a row to {table}")


def _check(answer: httpx.Response, what: str) -> None:
    if answer.is_error:
        raise SandboxError(f"Supabase refused to {what} (HTTP {answer.status_code}): {answer.text[:300]}")
