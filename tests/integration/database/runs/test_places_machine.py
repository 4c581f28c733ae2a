"""A random test of the worker's own code at three places of two launchers, on the real database.

Two workers claim, launch, poll, stop, leave places without a GPU, die, and adopt. The places accept a launch, refuse
it, or leave it in doubt; its trainer starts at any time, also after its run has left, and may be started again.
Whatever the order, no two executions of a job train at the same time.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.protocol import Channel, DatasetRef, Limits, OutputRef, Request, Result
from lora_worker.configuration.retry_limits import RetryLimits
from lora_worker.database.calls import DatabaseCalls
from lora_worker.database.function import Function
from lora_worker.database.rows import Assignment
from lora_worker.datasets.preflight import Plan
from lora_worker.errors import (
    LaunchInDoubtError,
    LeaseLostError,
    ServiceError,
    ServiceUnavailableError,
)
from lora_worker.launchers.base import LaunchRef, LaunchState, Observation, Policy
from lora_worker.launchers.endpoints import EndpointView
from lora_worker.launchers.places import Place
from lora_worker.launchers.routing_table import RoutingTable
from lora_worker.money.billing import Rate
from lora_worker.money.pricing import load_prices
from lora_worker.runs import advance
from lora_worker.runs.applying import apply
from lora_worker.runs.state.events import EndpointSeen, Renewed
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps import launching
from lora_worker.services import Services
from tests.database.rows import Database
from tests.scripted import GUIDE, Clock, make_services

EXAMPLES, STEPS_EACH = 26, 60
PICK = st.integers(min_value=0, max_value=10_000)
WORKERS = st.sampled_from(["w1", "w2"])
NAMES = st.sampled_from(["a", "b", "c"])
MOODS = st.sampled_from(["take", "take", "refuse", "doubt_taken", "doubt_lost", "die_taken", "die_lost"])
EVENTS = [
    *["work"] * 8, *["claim"] * 3, *["start"] * 4, *["run_out_of_gpus"] * 3, *["change"] * 2, *["end"] * 2,
    *["pass_time"] * 2, "have_gpus", "kill", "adopt", "adopt", "reconcile", "cancel",
]  # fmt: skip
"""Each as often as it shall be drawn."""
ADDRESSES = {"a": "https://one.example/a", "b": "https://one.example/b", "c": "https://two.example/c"}
TABLE = RoutingTable.model_validate(
    {
        "fall_back_minutes": 0.5,
        "endpoints": {"a": {"slots": 1}, "b": {}, "c": {"launcher": "two"}},
        "rules": [{"endpoints": ["a", "b", "c"]}],
    }
)


class Died(BaseException):
    """The worker's process ends here."""


@dataclass(eq=False)
class Gpu:
    """An accepted launch as its place sees it."""

    run_id: str
    token: str
    external_job_id: str
    state: LaunchState = LaunchState.QUEUED
    trains: bool = False
    output: Any = None


@dataclass(eq=False)
class Cloud:
    """One place. `mood` is what becomes of the next launch; a deaf one takes no cancel."""

    name: str
    endpoint: str
    mood: str = "take"
    deaf: bool = False
    gpus: dict[str, Gpu] = field(default_factory=dict)
    guide = GUIDE
    longest_launch_seconds = 1e6
    takes_errands = True

    def reaches(self, endpoint: str) -> bool:
        return endpoint == self.endpoint

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        mood, self.mood = self.mood, "take"
        if mood == "refuse":
            raise ServiceUnavailableError(self.name, "no machine is free")
        external_job_id = uuid4().hex
        if not mood.endswith("lost"):
            self.gpus[external_job_id] = Gpu(payload["run_id"], payload["channel"]["token"], external_job_id)
        if mood.startswith("die"):
            raise Died
        if mood.startswith("doubt"):
            raise LaunchInDoubtError(self.name, "no answer")
        return external_job_id

    async def observe(self, launch: LaunchRef) -> Observation:
        gpu = self.gpus.get(launch.external_job_id)
        if gpu is None:
            return Observation(LaunchState.MISSING)
        return Observation(gpu.state, output=gpu.output, execution_seconds=1.0 if gpu.trains else None)

    async def cancel(self, launch: LaunchRef) -> bool:
        gpu = self.gpus.get(launch.external_job_id)
        if self.deaf:
            return False
        if gpu is not None and gpu.state in {LaunchState.QUEUED, LaunchState.RUNNING}:
            gpu.state, gpu.trains = LaunchState.CANCELLED, False
        return True


class EmptyStorage:
    """No trainer of this test uploads anything."""

    async def size(self, bucket: str, path: str) -> None:
        return None

    async def read(self, bucket: str, path: str, **_: Any) -> None:
        return None


class SqlQueue(DatabaseCalls):
    """The worker's calls, straight to the database."""

    def __init__(self, database: Database, worker: str) -> None:
        super().__init__(
            "http://127.0.0.1:9", "key", worker=worker, lease_seconds=600, http=cast(httpx.AsyncClient, None)
        )
        self._database = database

    async def _call(self, function: Function[Any], attempts: int = 3, **arguments: Any) -> Any:
        named = ", ".join(f"{name} => %s" for name in arguments)
        values = [_adapted(name, value) for name, value in arguments.items()]
        answer = self._database.row(f"select public.{function.name}({named}) as answer", *values)["answer"]
        return function.answer.validate_json(json.dumps(answer, default=str))


def _adapted(name: str, value: Any) -> Any:
    if name == "launchers":
        return "{" + ",".join(f'"{each}"' for each in value) + "}"
    return json.dumps(value, default=str) if isinstance(value, dict | list) else value


@pytest.fixture(scope="module")
def shared(postgres: Any, database_template: str) -> Iterator[Database]:
    with postgres.clone(database_template) as url:
        made = Database(url)
        yield made
        made.close()


async def check_job(held: HeldRun, place: Place) -> Plan:
    rate = Rate.at(load_prices()[0], gpu_count=1, max_cost=100)
    survey = cast(Any, None)
    return Plan(Hyperparameters(), GpuConfig(), load_prices()[0], rate, Policy(60, 60), survey, place)


async def prepare_request(held: HeldRun, plan: Plan) -> Request:
    token = held.token or held.services.tokens.of(held.assignment.run.id, None)
    assert token is not None
    return Request(
        job_id=str(held.assignment.run.job_id), run_id=held.run_id, dataset=DatasetRef(url="https://x/y"),
        hyperparameters=Hyperparameters(), gpu_config=GpuConfig(),
        channel=Channel(url="https://x", key="sb_publishable_x", token=token),
        output=OutputRef(bucket="b", prefix="p/"), limits=Limits(max_seconds=60),
    )  # fmt: skip


class AtPlaces(RuleBasedStateMachine):
    """What can happen to the jobs of one user at three places."""

    db: Database
    seen: Counter[str]

    @initialize()
    def begin(self) -> None:
        self.db.rows(
            "truncate auth.users, training_runs, training_launches, training_endpoints, training_holds cascade"
        )
        self.user = self.db.user()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.clouds = {name: Cloud("one" if name < "c" else "two", address) for name, address in ADDRESSES.items()}
        self.jobs_of: dict[str, UUID] = {}
        self.held: dict[str, dict[UUID, HeldRun]] = {"w1": {}, "w2": {}}
        places = tuple(
            Place(name, cast(Any, cloud), slots=TABLE.endpoints[name].slots) for name, cloud in self.clouds.items()
        )
        self.services: dict[str, Services] = {
            worker: make_services(
                queue=SqlQueue(self.db, worker), storage=EmptyStorage(), launcher=places[0].launcher, clock=self.clock,
                routed_places=places, routes=TABLE, retry_limits=RetryLimits(50, 50, 0.0001, 0.0002),
            )
            for worker in self.held
        }  # fmt: skip

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    @rule(event=st.sampled_from(EVENTS), worker=WORKERS, name=NAMES, mood=MOODS, pick=PICK, likely=st.integers(0, 3))
    def happen(self, event: str, worker: str, name: str, mood: str, pick: int, likely: int) -> None:
        """One event. A rule for each would leave whole kinds of events out of most examples."""
        match event:
            case "claim":
                self.claim(worker, adds=bool(likely))
            case "work":
                self.work(worker, renews=bool(likely))
            case "start":
                self.start(pick, again=not likely)
            case "change":
                self.change(name, mood, deaf=likely < 2)
            case "run_out_of_gpus" | "have_gpus":
                getattr(self, event)(name)
            case "kill":
                self._crash(worker)
            case "adopt":
                self.adopt(worker)
            case "end" | "cancel":
                getattr(self, event)(pick)
            case _:
                getattr(self, event)()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def _take(self, worker: str, assignments: list[Assignment]) -> None:
        for taken in assignments:
            self.jobs_of[str(taken.run.id)] = taken.run.job_id
            self.held[worker][taken.run.id] = HeldRun.take(self.services[worker], taken, asked_at=self.clock())

    def _gpus(self, *states: LaunchState) -> list[tuple[Cloud, Gpu]]:
        return [(cloud, gpu) for cloud in self.clouds.values() for gpu in cloud.gpus.values() if gpu.state in states]

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────

    def claim(self, worker: str, *, adds: bool) -> None:
        if adds:
            self.db.jobs(1, self.user)
        self._take(worker, self._do(self.services[worker].queue.claim(2, None)))

    def adopt(self, worker: str) -> None:
        self._take(worker, self._do(self.services[worker].queue.adopt(5, ["one", "two"])))

    def _renew(self, held: HeldRun) -> None:
        (news,) = self._do(held.services.queue.renew([held.lease]))
        if not news.held:
            raise LeaseLostError("another worker has it")
        apply(held, Renewed(news, self.clock()))

    def work(self, worker: str, *, renews: bool) -> None:
        """A cycle on each run of the worker, mostly after a renewal."""
        for run_id, held in list(self.held[worker].items()):
            try:
                if renews:
                    self._renew(held)
                before = held.stopping
                self._do(advance.advance(held))
                if held.stopping is not None and held.stopping is not before:
                    self.seen[held.stopping.code] += 1
            except LeaseLostError:
                del self.held[worker][run_id]
                continue
            except ServiceError:
                continue
            except Died:
                self.seen["died"] += 1
                self._crash(worker)
                return
            if held.settled_as is not None:
                self.seen[f"settled {held.settled_as}"] += 1
                del self.held[worker][run_id]

    def _crash(self, worker: str) -> None:
        for run_id in self.held[worker]:
            self.db.expire(run_id)
        self.held[worker].clear()

    def cancel(self, pick: int) -> None:
        rows = self.db.rows("select id from training_jobs where status in ('queued', 'initializing', 'running')")
        if rows:
            self.db.call("cancel_training_job", rows[pick % len(rows)]["id"])

    def reconcile(self) -> None:
        for stray in self.db.call("stray_launches", 10):
            cloud = next((each for each in self.clouds.values() if stray["external_job_id"] in each.gpus), None)
            if cloud is not None:
                self._do(cloud.cancel(LaunchRef(cloud.endpoint, stray["external_job_id"])))
                if cloud.gpus[stray["external_job_id"]].state is LaunchState.CANCELLED:
                    self.db.call("close_launches", [{"external_job_id": stray["external_job_id"], "gpu_seconds": 1}])

    # ── places ──────────────────────────────────────────────────────────────────────────────────────

    def change(self, name: str, mood: str, *, deaf: bool) -> None:
        self.clouds[name].mood, self.clouds[name].deaf = mood, deaf

    def run_out_of_gpus(self, name: str) -> None:
        waiting = [cloud for cloud, _ in self._gpus(LaunchState.QUEUED)]
        cloud = waiting[0] if waiting else self.clouds[name]
        self.clock.now += 40
        self.db.call("note_endpoint_2", cloud.name, cloud.endpoint, "unknown", "no GPU", True)
        self.db.rows(
            "update training_endpoints set without_gpu_since = now() - interval '1 hour' where endpoint = %s",
            cloud.endpoint,
        )
        self._show(cloud, EndpointView("no GPU", 0.0, 3600.0))

    def have_gpus(self, name: str) -> None:
        cloud = self.clouds[name]
        self.db.call("note_endpoint_2", cloud.name, cloud.endpoint, "well", None, False)
        self.db.rows("update training_endpoints set passed_over_until = null where endpoint = %s", cloud.endpoint)
        self._show(cloud, EndpointView())

    def _show(self, cloud: Cloud, view: EndpointView) -> None:
        for held in (held for runs in self.held.values() for held in runs.values()):
            if held.launch_ref.endpoint == cloud.endpoint:
                apply(held, EndpointSeen(view))

    def pass_time(self) -> None:
        self.clock.now += 50
        self.db.rows("update training_holds set held_until = now()")

    def start(self, pick: int, *, again: bool) -> None:
        """A trainer starts, or a running one is started again, and checks in. It trains only where it may."""
        waiting = self._gpus(LaunchState.RUNNING if again else LaunchState.QUEUED)
        if not waiting:
            return
        # Those first that nobody waits for any more.
        owners = {
            row["external_job_id"]
            for row in self.db.rows(
                "select external_job_id from training_runs where ended_at is null and withdrawn_at is null"
            )
        }
        late = [found for found in waiting if found[1].external_job_id not in owners]
        _, gpu = (late or waiting)[pick % len(late or waiting)]
        gpu.state, gpu.trains = LaunchState.RUNNING, False
        answer = self.db.call("check_in_run", gpu.token, gpu.external_job_id, str(uuid4()))
        if not answer["may_train"]:
            self.seen[f"refused {answer['reason']}"] += 1
            gpu.state = LaunchState.COMPLETED
            gpu.output = Result(run_id=gpu.run_id, status="superseded").as_output()
            return
        self.seen["trained"] += 1
        gpu.trains = True

    def end(self, pick: int) -> None:
        running = self._gpus(LaunchState.RUNNING)
        if running:
            _, gpu = running[pick % len(running)]
            gpu.state, gpu.trains = LaunchState.COMPLETED, False

    # ── promises ────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def no_two_executions_of_a_job_train(self) -> None:
        if not hasattr(self, "jobs_of"):
            return
        training = Counter(self.jobs_of[gpu.run_id] for _, gpu in self._gpus(LaunchState.RUNNING) if gpu.trains)
        assert max(training.values(), default=0) <= 1, "two executions of one job train"

    @invariant()
    def a_run_that_left_never_began(self) -> None:
        left = self.db.rows("select from training_runs where withdrawn_at is not null and execution_id is not null")
        assert left == [], "a run that left its place for want of a GPU had a trainer"

    @invariant()
    def a_job_has_one_live_run(self) -> None:
        twice = self.db.rows(
            "select job_id from training_runs where status in ('claimed', 'launched', 'running')"
            " group by job_id having count(*) > 1"
        )
        assert twice == []


def test_no_order_of_fall_backs_trains_a_job_twice(shared: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def has_room(*_: Any) -> None:
        return None

    monkeypatch.setattr(launching, "check_job", check_job)
    monkeypatch.setattr(launching, "prepare_request", prepare_request)
    monkeypatch.setattr("lora_worker.storage.buckets.ArtifactsBucket.require", has_room)
    AtPlaces.db, AtPlaces.seen = shared, Counter()
    run_state_machine_as_test(
        AtPlaces,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS_EACH,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        ),
    )
    happened: Mapping[str, int] = AtPlaces.seen
    print(json.dumps(happened))
    for event in ("no_gpu_there", "trained", "died", "refused ended", "settled queued"):
        assert happened.get(event), f"{event} never happened: {happened}"
