"""The unit tests' fake queues answer as the real queue does on a real database through real REST."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol
from uuid import UUID, uuid4

import httpx
import pytest

from lora_worker.database.calls import SCHEMA_VERSIONS, DatabaseCalls
from lora_worker.database.functions import QUEUE_HEALTH
from lora_worker.database.rows import Assignment, DatasetClaim, Lease
from sandbox.supabase.project import Project
from tests import scripted
from tests.database.rows import Database, report
from tests.unit.worker.duties import test_dataset_validation as datasets

_LEASE_SECONDS = 600


class Scene(Protocol):
    """A queue, and the events around it."""

    queue: Any

    def add_jobs(self, count: int) -> None: ...
    def leave_runs(self, count: int) -> None: ...
    def lose(self, run_id: UUID) -> None: ...


class FakeScene:
    def __init__(self) -> None:
        self.queue = scripted.FakeQueue()

    def add_jobs(self, count: int) -> None:
        self.queue.to_claim += [scripted.assignment() for _ in range(count)]

    def leave_runs(self, count: int) -> None:
        self.queue.to_adopt += [scripted.assignment() for _ in range(count)]

    def lose(self, run_id: UUID) -> None:
        self.queue.lost.add(run_id)


class RealScene:
    """The real queue; every row belongs to a user of this test."""

    def __init__(self, queue: DatabaseCalls, project: Project) -> None:
        self.queue = queue
        self.project = project
        self.database = Database(project.database_url)

    def user(self) -> UUID:
        return UUID(self.project.create_user(f"{uuid4().hex}@example.com"))

    def add_jobs(self, count: int) -> None:
        self.database.jobs(count, self.user())

    def leave_runs(self, count: int) -> None:
        self.add_jobs(count)
        for claimed in self.database.claim(f"gone {uuid4()}", max_jobs=count):
            self.lose(UUID(claimed["run"]["id"]))

    def lose(self, run_id: UUID) -> None:
        self.database.expire(run_id)


@pytest.fixture
async def real(empty_supabase: Project) -> AsyncIterator[RealScene]:
    async with httpx.AsyncClient(timeout=60) as http:
        key = empty_supabase.secret_key
        queue = DatabaseCalls(empty_supabase.url, key, worker=f"w {uuid4()}", lease_seconds=_LEASE_SECONDS, http=http)
        scene = RealScene(queue, empty_supabase)
        yield scene
        scene.database.close()


@pytest.fixture(params=["fake", "real"])
def scene(request: pytest.FixtureRequest) -> Scene:
    made: Scene = FakeScene() if request.param == "fake" else request.getfixturevalue("real")
    return made


def leases(assignments: list[Assignment]) -> list[Lease]:
    return [Lease(each.run.id, each.run.lease_token) for each in assignments]


def sent(assignment: Assignment) -> dict[str, Any]:
    run = assignment.run
    return report({"id": run.id, "lease_token": run.lease_token}, progress=1)


async def test_schema_version_is_known_to_this_worker(scene: Scene) -> None:
    assert await scene.queue.check_schema() in SCHEMA_VERSIONS


async def test_empty_queue_returns_no_job(scene: Scene) -> None:
    queue = scene.queue
    assert await queue.claim(5, None) == []
    assert await queue.adopt(5, ["runpod"]) == []
    assert await queue.renew([]) == []
    assert await queue.record_progress([]) == {}
    assert await queue.claim_dataset() is None
    assert await queue.stray_launches(5) == []
    assert await queue.abandoned_uploads("lora-models", 5) == []
    assert await queue.release() == 0


async def test_claim_returns_at_most_the_requested_jobs_each_once(scene: Scene) -> None:
    scene.add_jobs(3)
    first, second = await scene.queue.claim(2, None), await scene.queue.claim(2, None)
    assert (len(first), len(second)) == (2, 1)
    assert len({each.run.id for each in first + second}) == 3
    assert await scene.queue.claim(2, None) == []


async def test_adoption_returns_at_most_the_requested_runs_each_once(scene: Scene) -> None:
    scene.leave_runs(3)
    first, second = await scene.queue.adopt(2, ["runpod"]), await scene.queue.adopt(2, ["runpod"])
    assert (len(first), len(second)) == (2, 1)
    assert await scene.queue.adopt(2, ["runpod"]) == []


async def test_renewal_reports_for_each_lease_whether_it_is_held(scene: Scene) -> None:
    scene.add_jobs(2)
    kept, lost = claimed = await scene.queue.claim(2, None)
    scene.lose(lost.run.id)
    news = await scene.queue.renew(leases(claimed))
    assert {each.run_id: each.held for each in news} == {kept.run.id: True, lost.run.id: False}


async def test_progress_is_applied_for_held_leases_only(scene: Scene) -> None:
    scene.add_jobs(2)
    kept, lost = claimed = await scene.queue.claim(2, None)
    scene.lose(lost.run.id)
    applied = await scene.queue.record_progress([sent(each) for each in claimed])
    assert applied == {kept.run.id: True, lost.run.id: False}


async def test_release_gives_up_every_lease_and_counts_them(scene: Scene) -> None:
    scene.add_jobs(2)
    claimed = await scene.queue.claim(2, None)
    assert await scene.queue.release() == 2
    assert [each.held for each in await scene.queue.renew(leases(claimed))] == [False, False]


async def test_the_health_of_a_queue_has_the_documented_shape(scene: Scene) -> None:
    scene.add_jobs(2)
    health = await scene.queue.health()
    assert QUEUE_HEALTH.answer.validate_python(health) == health
    assert health["queued"] == 2


async def test_run_on_a_base_without_a_breaker_may_launch(scene: Scene) -> None:
    scene.add_jobs(1)
    (claimed,) = await scene.queue.claim(1, None)
    (lease,) = leases([claimed])
    passed = await scene.queue.pass_breakers(
        lease.run_id, lease.token, base_model="org/base", endpoint="https://e.invalid/v2/e", look_again_seconds=300
    )
    assert passed["go"] is True


async def test_healthy_endpoint_has_no_failing_start(scene: Scene) -> None:
    noted = await scene.queue.note_endpoint(
        launcher="runpod",
        endpoint=f"https://e.invalid/v2/{uuid4().hex}",
        state="well",
        problem=None,
        without_gpu=False,
    )
    assert noted == {"starting_seconds": 0, "without_gpu_seconds": 0}


async def test_worker_heartbeat_is_accepted(scene: Scene) -> None:
    news = {"version": "1", "running_seconds": 1.0, "slots": 1, "held": 0, "max_per_user": None, "problem": None}
    assert await scene.queue.report_worker(news) == {"drain": False}


# ── datasets ────────────────────────────────────────────────────────────────────────────────────────


class DatasetScene:
    """A queue with one dataset that waits for its validation, and a way to lose its claim."""

    def __init__(self, queue: Any, lose: Callable[[DatasetClaim], None]) -> None:
        self.queue = queue
        self.lose = lose


@pytest.fixture(params=["fake", "real"])
def dataset_scene(request: pytest.FixtureRequest) -> DatasetScene:
    if request.param == "fake":
        fake = datasets.FakeQueue()

        def lose_fake(_: DatasetClaim) -> None:
            fake.holds = False

        return DatasetScene(fake, lose_fake)
    scene: RealScene = request.getfixturevalue("real")
    waiting = scene.database.dataset(scene.user())
    scene.database.rows("update datasets set status = 'validating', training_ready = false where id = %s", waiting)

    def lose(claim: DatasetClaim) -> None:
        scene.database.rows(
            "update dataset_validations set lease_expires_at = now() - interval '1 second' where dataset_id = %s",
            claim.dataset.id,
        )

    return DatasetScene(scene.queue, lose)


async def test_dataset_is_claimed_once_and_its_claim_is_held(dataset_scene: DatasetScene) -> None:
    queue = dataset_scene.queue
    claim = await queue.claim_dataset()
    assert claim.attempts == 1
    assert await queue.claim_dataset() is None
    assert await queue.renew_dataset_claim(claim.dataset.id, claim.lease_token) is True
    assert await queue.settle_dataset(claim.dataset.id, claim.lease_token, {"status": "error"}) is True


async def test_postponed_dataset_is_not_claimed_before_its_time(dataset_scene: DatasetScene) -> None:
    queue = dataset_scene.queue
    claim = await queue.claim_dataset()
    assert await queue.put_off_dataset(claim.dataset.id, claim.lease_token, seconds=3600) is True
    assert await queue.claim_dataset() is None


async def test_lost_dataset_claim_cannot_write(dataset_scene: DatasetScene) -> None:
    queue = dataset_scene.queue
    claim = await queue.claim_dataset()
    dataset_scene.lose(claim)
    assert await queue.renew_dataset_claim(claim.dataset.id, claim.lease_token) is False
    assert await queue.put_off_dataset(claim.dataset.id, claim.lease_token, seconds=0) is False
    assert await queue.settle_dataset(claim.dataset.id, claim.lease_token, {"status": "error"}) is False


# ── signatures ──────────────────────────────────────────────────────────────────────────────────────


def methods(kind: type) -> dict[str, inspect.Signature]:
    """The public methods of a queue: names, arguments and return types as written."""
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(kind)
        if inspect.iscoroutinefunction(method) and not name.startswith("_")
    }


def spelled(signature: inspect.Signature) -> tuple[list[tuple[str, Any, Any]], str]:
    parameters = [(each.name, each.kind, each.default) for each in signature.parameters.values()]
    return parameters, str(signature.return_annotation).replace("functions.", "")


@pytest.mark.parametrize("fake", [scripted.FakeQueue, datasets.FakeQueue], ids=["runs", "datasets"])
def test_fake_queues_have_the_signatures_of_the_real_queue(fake: type) -> None:
    real = methods(DatabaseCalls)
    for name, signature in methods(fake).items():
        assert spelled(signature) == spelled(real[name]), name
