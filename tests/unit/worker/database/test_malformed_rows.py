"""An unreadable row fails only its own job: all others are claimed, adopted and renewed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from lora_worker.database.calls import DatabaseCalls
from lora_worker.database.rows import Assignment, Dataset, Lease, parse_assignment
from lora_worker.duties.daemon import Daemon
from lora_worker.errors import ServiceUnavailableError
from lora_worker.launchers.base import LaunchState
from lora_worker.money.pricing import find_gpu, load_prices
from tests.scripted import FakeLauncher, ForgetfulLauncher, make_services, note_settlings

Row = dict[str, Any]


def assignment_row(job: Row | None = None, dataset: Row | None = None, **run: Any) -> Row:
    """An assignment as the database returns it, with some columns replaced."""
    user, job_id, dataset_id = str(uuid4()), str(uuid4()), str(uuid4())
    return {
        "run": {
            "id": str(uuid4()), "job_id": job_id, "user_id": user, "attempt": 1, "status": "claimed",
            "lease_token": str(uuid4()), "created_at": datetime.now(UTC).isoformat(), **run,
        },
        "job": {
            "id": job_id, "user_id": user, "dataset_id": dataset_id, "preset_id": "fast", "status": "initializing",
            "progress": 0, "hyperparameters": {}, "gpu_config": {}, "total_epochs": 1, **(job or {}),
        },
        "dataset": {
            "id": dataset_id, "user_id": user, "name": "Zebras", "storage_path": f"{user}/z", "deleted_at": None,
            **(dataset or {}),
        },
    }  # fmt: skip


def queue_answering(rows: list[Row]) -> DatabaseCalls:
    """A queue whose database answers every call with these rows."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=json.dumps(rows)))
    client = httpx.AsyncClient(transport=transport)
    return DatabaseCalls("http://database", "sb_secret_x", worker="w", lease_seconds=60, http=client)


@pytest.mark.parametrize("take", [lambda queue: queue.claim(9, None), lambda queue: queue.adopt(9, ["runpod"])])
@pytest.mark.parametrize(
    "broken",
    [
        assignment_row(job={"total_epochs": "many"}),
        assignment_row(job={"dataset_id": 17}),
        assignment_row(dataset={"storage_path": None}),
    ],
)
async def test_unreadable_job_is_claimed_with_a_sentence_beside_good_ones(
    take: Callable[[DatabaseCalls], Any], broken: Row
) -> None:
    good = [assignment_row(), assignment_row()]
    taken: list[Assignment] = await take(queue_answering([good[0], broken, good[1]]))
    assert [str(each.run.id) for each in taken] == [row["run"]["id"] for row in (good[0], broken, good[1])]
    assert [each.unreadable is None for each in taken] == [True, False, True]
    assert taken[1].unreadable is not None
    assert "start the job again" in taken[1].unreadable
    assert "many" not in taken[1].unreadable


async def test_sentence_of_the_database_becomes_the_jobs_failure() -> None:
    row = assignment_row(job={"hyperparameters": None}) | {"unreadable": "hyperparameters is larger than 8 KB"}
    (taken,) = await queue_answering([row]).claim(9, None)
    assert taken.unreadable == (
        "The job can't be read: hyperparameters is larger than 8 KB. Change it and start the job again."
    )


async def test_too_deeply_nested_answer_is_a_service_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content="[" * 200_000))
    queue = DatabaseCalls(
        "http://db", "sb_secret_x", worker="w", lease_seconds=60, http=httpx.AsyncClient(transport=transport)
    )
    with pytest.raises(ServiceUnavailableError, match="no answer"):
        await queue.claim(9, None)


@pytest.mark.parametrize("odd", [5, [], {"a": 1}, True, None, ""])
def test_malformed_gpu_name_is_an_unknown_gpu(odd: Any) -> None:
    assert find_gpu(load_prices(), odd) is None


async def test_unreadable_run_does_not_block_others(capsys: pytest.CaptureFixture[str]) -> None:
    good, broken = assignment_row(), assignment_row(attempt="first")
    taken = await queue_answering([broken, good]).claim(9, None)
    assert [str(each.run.id) for each in taken] == [good["run"]["id"]]
    assert broken["run"]["id"] in capsys.readouterr().out


async def test_unreadable_news_of_a_run_do_not_block_other_renewals() -> None:
    good: Row = {"run_id": str(uuid4()), "held": True}
    broken: Row = {"run_id": str(uuid4()), "held": True, "used_seconds": "long"}
    news = await queue_answering([broken, good]).renew([Lease(UUID(row["run_id"]), uuid4()) for row in (good, broken)])
    assert [str(each.run_id) for each in news] == [good["run_id"]]


@pytest.mark.parametrize("request_", [[1], {"path": "a"}, "a", [{"path": "a"}, None]])
async def test_malformed_upload_request_does_not_block_the_renewal(request_: Any) -> None:
    row = {"run_id": str(uuid4()), "held": True, "upload_request": request_}
    (news,) = await queue_answering([row]).renew([Lease(UUID(row["run_id"]), uuid4())])
    assert news.held


def test_unneeded_columns_may_be_missing_or_infinite() -> None:
    row = assignment_row(job={"progress": None, "started_at": "infinity"}, dataset={"deleted_at": "-infinity"})
    read = parse_assignment(row)
    assert read.unreadable is None
    assert read.dataset is not None
    assert read.dataset.deleted_at is not None


def test_infinite_deletion_date_of_a_dataset_is_readable() -> None:
    for moment in ("infinity", "20000-01-01T00:00:00+00:00"):
        assert Dataset(id=uuid4(), name="z", storage_path="p", deleted_at=moment).deleted_at


async def settled(monkeypatch: pytest.MonkeyPatch, row: Row, launcher: FakeLauncher) -> list[Any]:
    """The endings with which two cycles of the daemon settle a run with this row."""
    endings = note_settlings(monkeypatch)
    daemon = Daemon(make_services(launcher=launcher))
    daemon.services.queue.to_adopt = [parse_assignment(row)]  # type: ignore[attr-defined]
    await daemon.runs.adopt()
    await daemon.runs.poll()
    await daemon.runs.poll()
    return endings


async def test_unreadable_job_fails_without_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    (ending,) = await settled(monkeypatch, assignment_row(job={"total_epochs": "many"}), FakeLauncher())
    assert ending.failure.code == "job_unreadable"
    assert "total_epochs" in ending.failure.message


async def test_unreadable_adopted_job_has_its_gpu_stopped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = ForgetfulLauncher(LaunchState.RUNNING)
    row = assignment_row(job={"total_epochs": "many"}, status="running", external_job_id="ext")
    (ending,) = await settled(monkeypatch, row, launcher)
    assert launcher.cancelled == ["ext"]
    assert ending.failure.code == "job_unreadable"
