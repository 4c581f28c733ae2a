"""The opt-in policies of Storage: users store datasets and fetch published models themselves, and nothing more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import httpx
import psycopg
import pytest

from lora_worker.database.migrations import migrate
from sandbox.supabase.project import Project
from tests.application.pipeline import Pipeline
from tests.database.rows import Database

FILES = ("adapter_config.json", "manifest.json", "log.txt")


class Person:
    """A signed-in user, and the objects that the service stored for a run of theirs."""

    def __init__(self, project: Project) -> None:
        self.user_id = project.create_user(f"{uuid4().hex}@example.com")
        self.client = project.client(self.user_id)
        self.service = project.client()
        self.run_id = str(uuid4())
        for name in FILES:
            self.keep("lora-models", f"{self.user_id}/{self.run_id}/{name}")

    def close(self) -> None:
        self.client.close()
        self.service.close()

    def keep(self, bucket: str, path: str) -> None:
        """Store an object with the service's key."""
        kind = "application/x-jsonlines" if bucket == "lora-datasets" else "application/octet-stream"
        self.service.post(
            f"/storage/v1/object/{bucket}/{path}", content=b"kept", headers={"content-type": kind, "x-upsert": "true"}
        ).raise_for_status()

    def publish(self, project: Project) -> None:
        """Give the run the rows of a completed job, whose artifact lists its files except the log."""
        dataset, job = uuid4(), uuid4()
        listed = {"adapter_config.json": f"{self.user_id}/{self.run_id}/adapter_config.json"}
        with psycopg.connect(project.database_url, autocommit=True) as connection:
            connection.execute(
                "insert into datasets (id, user_id, name, storage_path, file_name, file_size) values"
                " (%s, %s, 'd', %s, 'f', 1)", (dataset, self.user_id, str(dataset)),
            )  # fmt: skip
            connection.execute(
                "insert into training_jobs (id, user_id, dataset_id, preset_id, hyperparameters, gpu_config,"
                " total_epochs, estimated_total_cost, status) values (%s, %s, %s, 'x', '{}', '{}', 1, 1, 'completed')",
                (job, self.user_id, dataset),
            )
            connection.execute(
                "insert into model_artifacts (id, user_id, job_id, dataset_id, name, quality_metrics, training_summary,"
                " configuration, artifacts) values (%s, %s, %s, %s, 'm', '{}', '{}', '{}', %s)",
                (self.run_id, self.user_id, job, dataset, json.dumps(listed)),
            )

    def put(self, path: str, *, replace: bool = False) -> httpx.Response:
        headers = {"content-type": "application/x-jsonlines"} | ({"x-upsert": "true"} if replace else {})
        return self.client.post(f"/storage/v1/object/lora-datasets/{path}", content=b"{}\n", headers=headers)

    def reads(self, bucket: str, path: str) -> bool:
        return self.client.get(f"/storage/v1/object/{bucket}/{path}").status_code == 200

    def model(self, name: str) -> str:
        return f"{self.user_id}/{self.run_id}/{name}"


@pytest.fixture(scope="module")
def opened(supabase: Project) -> Iterator[Project]:
    """The project with the policies, which go at the end."""
    migrate(supabase.database_url, storage_policies=True)
    yield supabase
    migrate(supabase.database_url, storage_policies=False)


@pytest.fixture
def people(opened: Project) -> Iterator[tuple[Person, Person]]:
    """Two users with a published model each."""
    made = Person(opened), Person(opened)
    for person in made:
        person.publish(opened)
    yield made
    for person in made:
        person.close()


def test_a_user_stores_and_reads_an_own_dataset(people: tuple[Person, Person]) -> None:
    person, other = people
    path = f"{person.user_id}/{uuid4()}/data.jsonl"
    assert person.put(path).status_code == 200
    assert person.reads("lora-datasets", path)
    assert not other.reads("lora-datasets", path)
    signed = person.client.post(f"/storage/v1/object/sign/lora-datasets/{path}", json={"expiresIn": 60})
    assert signed.status_code == 200
    assert other.client.post(f"/storage/v1/object/sign/lora-datasets/{path}", json={"expiresIn": 60}).is_error


def test_a_stored_dataset_is_neither_replaced_nor_removed(people: tuple[Person, Person]) -> None:
    """A job is trained on what was checked before."""
    person, _ = people
    path = f"{person.user_id}/{uuid4()}/data.jsonl"
    assert person.put(path).status_code == 200
    assert person.put(path).is_error
    assert person.put(path, replace=True).is_error
    person.client.request("DELETE", "/storage/v1/object/lora-datasets", json={"prefixes": [path]})
    assert person.reads("lora-datasets", path)


@pytest.mark.parametrize("place", ["{other}/{id}/data.jsonl", "data.jsonl", "{own}/data.jsonl", "{own}/a/b/data.jsonl"])
def test_a_user_stores_nothing_elsewhere(people: tuple[Person, Person], place: str) -> None:
    person, other = people
    path = place.format(own=person.user_id, other=other.user_id, id=uuid4())
    assert person.put(path).is_error
    for bucket in ("lora-models", "training-files"):
        answer = person.client.post(f"/storage/v1/object/{bucket}/{person.user_id}/x/y.json", json={})
        assert answer.is_error


def test_a_user_fetches_the_listed_files_of_an_own_model(people: tuple[Person, Person]) -> None:
    person, other = people
    for name in ("adapter_config.json", "manifest.json"):
        assert person.reads("lora-models", person.model(name))
        assert not other.reads("lora-models", person.model(name))


def test_a_runs_log_and_unverified_uploads_stay_closed(people: tuple[Person, Person]) -> None:
    person, _ = people
    person.keep("lora-models", f"uploads/{person.run_id}/adapter_config.json")
    person.keep("lora-models", person.model("more.bin"))
    for path in (person.model("log.txt"), person.model("more.bin"), f"uploads/{person.run_id}/adapter_config.json"):
        assert not person.reads("lora-models", path)
    listed = person.client.post(
        "/storage/v1/object/list/lora-models", json={"prefix": f"{person.user_id}/{person.run_id}", "limit": 10}
    )
    assert {entry["name"] for entry in listed.json()} <= {"adapter_config.json", "manifest.json"}


def test_an_unpublished_or_deleted_model_is_closed(opened: Project) -> None:
    with closing(Person(opened)) as person:
        assert not person.reads("lora-models", person.model("adapter_config.json"))
        person.publish(opened)
        assert person.reads("lora-models", person.model("adapter_config.json"))
        with psycopg.connect(opened.database_url, autocommit=True) as connection:
            connection.execute("update model_artifacts set deleted_at = now() where id = %s", [person.run_id])
        assert not person.reads("lora-models", person.model("adapter_config.json"))


def test_nobody_without_a_session_gets_in(opened: Project, people: tuple[Person, Person]) -> None:
    person, _ = people
    path = f"{person.user_id}/{uuid4()}/data.jsonl"
    with httpx.Client(base_url=opened.url, headers={"apikey": opened.publishable_key}, trust_env=False) as anon:
        assert anon.post(f"/storage/v1/object/lora-datasets/{path}", content=b"{}\n").is_error
        assert anon.get(f"/storage/v1/object/lora-models/{person.model('manifest.json')}").is_error


def test_an_archive_of_a_completed_job_is_its_owners(opened: Project, people: tuple[Person, Person]) -> None:
    person, other = people
    with closing(Database(opened.database_url)) as database:
        pipeline = Pipeline(database)
        try:
            pipeline.create()
        except psycopg.errors.DuplicateTable:
            pytest.skip("the project has a queue of its own")
        try:
            migrate(opened.database_url, storage_policies=True)
            job = pipeline.queue(user_id=person.user_id)
            person.keep("lora-models", f"adapters/{job}.tar.gz")
            assert not person.reads("lora-models", f"adapters/{job}.tar.gz")
            database.rows("update pipeline_training_jobs set status = 'completed' where id = %s", job)
            assert person.reads("lora-models", f"adapters/{job}.tar.gz")
            assert not other.reads("lora-models", f"adapters/{job}.tar.gz")
        finally:
            migrate(opened.database_url, storage_policies=False)
            pipeline.remove()
            migrate(opened.database_url, storage_policies=True)


def test_without_the_policies_everything_is_closed_again(opened: Project, people: tuple[Person, Person]) -> None:
    person, _ = people
    migrate(opened.database_url, storage_policies=False)
    try:
        assert person.put(f"{person.user_id}/{uuid4()}/data.jsonl").is_error
        assert not person.reads("lora-models", person.model("manifest.json"))
    finally:
        assert any(change.kind == "policy" for change in migrate(opened.database_url, storage_policies=True).changes)
    assert migrate(opened.database_url, storage_policies=True).changes == []
