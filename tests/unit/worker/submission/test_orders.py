"""What an enqueue does when something fails half-way: a file that changes, Auth that refuses, rows that are refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
import respx

from lora_contract.hyperparameters import Hyperparameters
from lora_worker.errors import ArgumentError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.services import Services
from lora_worker.submission.files import read_dataset, upload_chunks
from lora_worker.submission.orders import Order, enqueue
from lora_worker.submission.users import OPERATOR_MAIL, find_owner
from tests.application.user import LINE
from tests.scripted import make_services

USER = UUID(int=7)
URL = "http://127.0.0.1:9"
CONTENT = b"\n".join([LINE] * 4)


class Queue:
    """The database: users by their names, and an answer to each submission."""

    def __init__(self, *answers: Any) -> None:
        self.users: dict[str, UUID] = {}
        self.operator_is_ours = True
        self.answers = list(answers)
        self.sent: list[tuple[dict[str, Any], dict[str, Any]]] = []

    async def find_training_user(self, named: str) -> Any:
        if named not in self.users:
            return None
        is_operator = named == OPERATOR_MAIL and self.operator_is_ours
        return {"user_id": self.users[named], "email": named, "is_operator": is_operator}

    async def training_run_speed(self, base_model: str, gpu_type: str) -> None:
        return None

    async def submit_training_job(self, dataset: Any, job: Any) -> Any:
        self.sent.append((dataset, job))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Bucket:
    """Storage, with the file that it was sent."""

    def __init__(self, limit: int | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.limit = limit

    async def buckets(self) -> list[dict[str, Any]]:
        return [{"name": "lora-datasets", "file_size_limit": self.limit}]

    async def size(self, bucket: str, path: str) -> int | None:
        return len(self.objects[path]) if path in self.objects else None

    async def write_stream(self, bucket: str, path: str, chunks: AsyncIterator[bytes], **_: Any) -> None:
        # As Storage does, which has the whole file before the client finds that it has changed.
        self.objects[path] = b""
        async for chunk in chunks:
            self.objects[path] += chunk

    async def remove(self, bucket: str, paths: list[str]) -> None:
        for path in paths:
            self.objects.pop(path, None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "zebras.jsonl"
    made.write_bytes(CONTENT)
    return made


def overwrite(file: Path) -> None:
    """Put other content of the same length into the file."""
    file.write_bytes(CONTENT.replace(b"question", b"quetsion"))


def services(queue: Queue, bucket: Bucket) -> Services:
    queue.users["me@example.com"] = USER
    return make_services(queue=cast(Any, queue), storage=cast(Any, bucket))


def order(file: Path, **changes: Any) -> Order:
    return Order(file=file, hyperparameters={"epochs": 2}, user="me@example.com", **changes)


async def test_rows_are_those_of_the_application(file: Path) -> None:
    queue, bucket = Queue({"job_id": UUID(int=1), "dataset_id": UUID(int=2)}), Bucket()
    made = await enqueue(services(queue, bucket), order(file, name="Stripes"))
    ((dataset, job),) = queue.sent
    assert dataset["storage_path"] == f"{USER}/{made.dataset_id}/zebras.jsonl"
    assert bucket.objects == {dataset["storage_path"]: CONTENT}
    assert (dataset["name"], dataset["file_size"], dataset["total_training_pairs"]) == ("Stripes", len(CONTENT), 4)
    assert (job["total_epochs"], job["total_steps"], job["preset_id"]) == (2, 2, "custom")
    assert set(job["hyperparameters"]) == {"learning_rate", "batch_size", "epochs", "rank", "base_model"}


async def test_a_file_that_gets_another_name_is_another_dataset(file: Path) -> None:
    queue = Queue(*[{"job_id": UUID(int=1), "dataset_id": UUID(int=2)}] * 4)
    made = services(queue, Bucket())
    ids = [(await enqueue(made, order(file, name=name))).dataset_id for name in (None, "Stripes", "Hooves", "Stripes")]
    assert ids[1] == ids[3]
    assert len(set(ids)) == 3
    assert [dataset["name"] for dataset, _ in queue.sent] == ["zebras", "Stripes", "Hooves", "Stripes"]


@pytest.mark.parametrize(
    ("gpu", "sentence"),
    [("abacus", "'abacus' is not a GPU that is offered"), ("H100", "endpoint has L4 .*, not H100: leave --gpu out")],
)
async def test_a_card_that_the_endpoint_has_not_is_refused(file: Path, gpu: str, sentence: str) -> None:
    queue = Queue()
    made = services(queue, Bucket())
    made = replace(made, settings=made.settings.model_copy(update={"endpoint_gpu_type": "L4"}))
    with pytest.raises(ArgumentError, match=sentence):
        await enqueue(made, order(file, gpu=gpu))
    assert queue.sent == []


async def test_a_refused_row_leaves_no_file(file: Path) -> None:
    queue, bucket = Queue(ServiceRefusedError("db", "no", status=400)), Bucket()
    with pytest.raises(ServiceRefusedError):
        await enqueue(services(queue, bucket), order(file))
    assert bucket.objects == {}


async def test_a_lost_answer_leaves_the_file_for_the_next_command(file: Path) -> None:
    queue, bucket = Queue(ServiceUnavailableError("db", "away"), {"job_id": UUID(int=1), "dataset_id": USER}), Bucket()
    with pytest.raises(ServiceUnavailableError):
        await enqueue(services(queue, bucket), order(file))
    said: list[str] = []
    await enqueue(services(queue, bucket), order(file), said.append)
    assert "the file is stored already" in said
    assert queue.sent[0][0]["id"] == queue.sent[1][0]["id"]
    assert len(bucket.objects) == 1


async def test_a_file_that_changes_meanwhile_is_not_kept(file: Path) -> None:
    queue, bucket = Queue(), Bucket()
    stored = bucket.write_stream

    async def changed(*arguments: Any, **more: Any) -> None:
        overwrite(file)
        await stored(*arguments, **more)

    bucket.write_stream = changed  # type: ignore[method-assign]
    with pytest.raises(ArgumentError, match="was changed while it was read"):
        await enqueue(services(queue, bucket), order(file))
    assert bucket.objects == {}
    assert queue.sent == []


async def test_a_file_above_the_buckets_limit_is_not_sent(file: Path) -> None:
    bucket = Bucket(limit=100)
    with pytest.raises(ArgumentError, match="takes 0: split it, or raise the bucket's limit"):
        await enqueue(services(Queue(), bucket), order(file))
    assert bucket.objects == {}


async def test_a_deleted_user_is_one_sentence(file: Path) -> None:
    bucket = Bucket()
    with pytest.raises(ArgumentError, match="was deleted meanwhile"):
        await enqueue(services(Queue(None, None), bucket), order(file))
    assert bucket.objects == {}


async def test_the_chunks_are_the_file(file: Path) -> None:
    dataset = read_dataset(file, Hyperparameters())
    assert b"".join([chunk async for chunk in upload_chunks(dataset)]) == CONTENT


@asynccontextmanager
async def with_auth(queue: Queue, **answer: Any) -> AsyncIterator[tuple[Services, respx.Route]]:
    """Services whose Auth gives this answer to a new user."""
    async with httpx.AsyncClient() as http, respx.mock(base_url=URL, assert_all_called=False) as api:
        route = api.post("/auth/v1/admin/users").respond(**answer)
        yield make_services(queue=cast(Any, queue), http=http), route


async def test_the_operators_user_is_made_without_a_password() -> None:
    queue = Queue()
    async with with_auth(queue, status_code=200, json={}) as (made, route):
        route.mock(side_effect=lambda _: queue.users.update({OPERATOR_MAIL: USER}) or httpx.Response(200, json={}))
        assert await find_owner(made, None) == USER
        sent = json.loads(route.calls.last.request.content)
        assert sent == {"email": OPERATOR_MAIL, "email_confirm": True, "app_metadata": {"lora_worker": "operator"}}
        await find_owner(made, None)
        assert route.call_count == 1


async def test_who_signed_up_with_the_operators_address_gets_nothing(file: Path) -> None:
    queue, bucket = Queue(), Bucket()
    made = services(queue, bucket)
    queue.users[OPERATOR_MAIL], queue.operator_is_ours = USER, False
    with pytest.raises(ArgumentError, match="was not made by lora-worker"):
        await enqueue(made, Order(file=file, hyperparameters={}))
    assert (bucket.objects, queue.sent) == ({}, [])


async def test_a_user_that_another_command_made_meanwhile_is_used() -> None:
    queue = Queue()
    async with with_auth(queue, status_code=422) as (made, route):
        route.mock(side_effect=lambda _: queue.users.update({OPERATOR_MAIL: USER}) or httpx.Response(422, json={}))
        assert await find_owner(made, None) == USER


@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        (401, ServiceRefusedError, "name a user with --user"),
        (503, ServiceUnavailableError, "try again"),
        (429, ServiceUnavailableError, "try again"),
    ],
)
async def test_auth_that_refuses_is_one_sentence(status: int, error: type[Exception], sentence: str) -> None:
    async with with_auth(Queue(), status_code=status) as (made, _):
        with pytest.raises(error, match=sentence):
            await find_owner(made, None)
