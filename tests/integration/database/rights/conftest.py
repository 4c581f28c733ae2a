"""Two users in a database of their own, and two users signed in through the REST API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from sandbox.supabase.postgres import Postgres
from sandbox.supabase.project import Project
from tests.database.rows import Database, Row
from tests.integration.database.rights.signed_in import Rest, add
from tests.integration.database.rights.world import World, populated


@pytest.fixture
def world(
    postgres: Postgres, database_template: str, generous_template: str, request: pytest.FixtureRequest
) -> Iterator[World]:
    """A project that grants nothing by default or, with the parameter True, everything."""
    template = generous_template if getattr(request, "param", False) else database_template
    with postgres.clone(template) as url:
        yield from populated(Database(url))


@pytest.fixture
def rest(supabase: Project) -> Iterator[Rest]:
    owner_id, stranger_id = (supabase.create_user(f"{uuid4().hex}@example.com") for _ in range(2))
    with (
        supabase.client(owner_id) as owner,
        supabase.client(stranger_id) as stranger,
        httpx.Client(base_url=supabase.url, headers={"apikey": supabase.publishable_key}, trust_env=False) as anon,
        supabase.client() as service,
    ):
        dataset, job = str(uuid4()), str(uuid4())
        add(
            owner,
            "datasets",
            id=dataset,
            user_id=owner_id,
            name="Zebras",
            storage_path=dataset,
            file_name="z",
            file_size=1,
        )
        add(owner, "training_jobs", **job_row(job, owner_id, dataset))
        add(service, "metrics_points", job_id=job, epoch=1, step=1, training_loss=1, learning_rate=0.1)
        yield Rest(owner, stranger, anon, service, owner_id, job)
        service.delete(f"/rest/v1/training_jobs?id=eq.{job}")


def job_row(job: str, user: str, dataset: str, **columns: Any) -> Row:
    return {
        "id": job, "user_id": user, "dataset_id": dataset, "preset_id": "fast", "hyperparameters": {},
        "gpu_config": {}, "total_epochs": 1, "estimated_total_cost": 1, "status": "queued", **columns,
    }  # fmt: skip
