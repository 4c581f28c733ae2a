"""One fault on some jobs, played from the first queued job to the last reconciled launch."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tests.chaos.clouds.base import Cloud
from tests.chaos.verdict import Row, judge
from tests.chaos.world import LEASE_SECONDS, Plan, World
from tests.processes.waiting import until

WORKERS = 2

COMPLETED = frozenset({"completed"})
FAILED = frozenset({"failed"})
CANCELLED = frozenset({"cancelled"})

CloudKind = TypeVar("CloudKind", bound=Cloud)


@dataclass
class Scene:
    """The jobs of a fault, and the world it acts on. The fault queues the jobs itself, since some faults come first."""

    world: World
    jobs: int
    rng: random.Random
    ends: dict[str, frozenset[str]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    @property
    def job_ids(self) -> list[str]:
        """All jobs queued so far."""
        return list(self.ends)

    def queue(self, *special: Plan, steps: tuple[int, int] = (6, 16)) -> None:
        """Queue all the jobs: the given ones, spread among ordinary ones."""
        plans = [*special, *(Plan(self.rng.randint(*steps)) for _ in range(self.jobs - len(special)))]
        self.rng.shuffle(plans)
        self.ends |= dict(zip(self.world.queue(plans), [plan.ends for plan in plans], strict=True))

    def count(self, condition: str) -> int:
        """How many of the jobs' runs meet a condition on `training_runs r`."""
        return self.world.count(
            f"select count(*) from training_runs r where job_id = any(%s::uuid[]) and {condition}", self.job_ids
        )

    def until_training(self, runs: int) -> None:
        """Wait until so many runs have checked in."""
        until(lambda: self.count("checked_in_at is not null") >= runs, f"{runs} runs that train")

    def cloud(self, kind: type[CloudKind]) -> CloudKind:
        """The cloud, for a fault that needs one of this kind."""
        cloud = self.world.cloud
        assert isinstance(cloud, kind)
        return cloud

    @contextmanager
    def armed(self, operation: Any, action: Any, **details: Any) -> Iterator[Callable[[], int]]:
        """Arm a fault of the cloud's calls while the context is open; yields a function that counts its strikes."""
        cloud = self.world.cloud
        faults = cloud.faults
        number = faults.add(cloud.calls.get(operation, operation), action, **details)
        try:
            yield lambda: faults.hits(number)
        finally:
            faults.clear()

    def until_struck(self, hits: Callable[[], int], times: int) -> None:
        """Wait until a fault has struck so often."""
        until(lambda: hits() >= times, f"{times} strikes of the fault")

    def wait_out_leases(self) -> None:
        """Wait until every current lease has expired."""
        time.sleep(LEASE_SECONDS + 1)


Act = Callable[[Scene], None]


def play(world: World, name: str, act: Act, *, jobs: int, seed: int) -> Row:
    """Play the fault, wait until everything has ended, and judge it. Afterwards the world is repaired.

    Recovery is the time from the end of the fault until the workers have written to every job that was
    then live.
    """
    scene = Scene(world, jobs, random.Random(f"{name} {seed}"))
    began = time.monotonic()
    try:
        act(scene)
    except TimeoutError as error:
        scene.complaints.append(str(error))
        world.restore(WORKERS)
    recovery_seconds = _recover(scene)
    with _complaining(scene):
        until(lambda: not world.unfinished(scene.job_ids), "every job ends", state=lambda: world.unended(scene.job_ids))
    world.cloud.faults.clear()
    with _complaining(scene):
        until(lambda: not _open_launches(scene), "every launch is closed")
    row = judge(name, world.dump(scene.job_ids), scene.ends)
    row = replace(
        row,
        recovery_seconds=recovery_seconds,
        seconds=round(time.monotonic() - began, 1),
        complaints=(*row.complaints, *scene.complaints),
    )
    if row.is_clean:
        world.restore(WORKERS)
    return row


@contextmanager
def _complaining(scene: Scene) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        scene.complaints.append(str(error))


def _recover(scene: Scene) -> float | None:
    began = time.monotonic()
    (now,) = scene.world.query("select clock_timestamp() as at")
    live = scene.world.query(
        "select id::text from training_jobs where id = any(%s::uuid[]) and status in ('initializing', 'running')",
        scene.job_ids,
    )
    ids = [row["id"] for row in live]
    if not ids:
        return 0.0
    # A job that has ended was written to, whatever its time says: `updated_at` is when the transaction began, and the
    # one that ended this job may have begun before `now` and have been committed after the jobs were read.
    untouched = (
        "select id::text, status, current_stage from training_jobs where id = any(%s::uuid[]) and updated_at <= %s"
        " and status in ('initializing', 'running')"
    )
    left: list[dict[str, Any]] = []

    def is_recovered() -> bool:
        left[:] = scene.world.query(untouched, ids, now["at"])
        return not left

    try:
        until(is_recovered, "every live job is written to again")
    except TimeoutError as error:
        scene.complaints.append(f"{error}; not so {left[:5]} of {len(left)}")
        return None
    return round(time.monotonic() - began, 1)


def _open_launches(scene: Scene) -> int:
    """Launches that cost money now or later: at the cloud, or not closed in the database yet."""
    runs = {row["id"] for row in scene.world.query(
        "select id::text from training_runs where job_id = any(%s::uuid[])", scene.job_ids)}  # fmt: skip
    at_work = sum(1 for execution in scene.world.cloud.orphans() if execution.run_id in runs)
    to_close = scene.world.count(
        "select count(*) from training_launches where run_id = any(%s::uuid[])"
        " and external_job_id is not null and ended_at is null",
        list(runs),
    )
    return at_work + to_close
