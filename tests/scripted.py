"""Fake services whose answers a test sets, and a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest

from lora_worker.configuration.retry_limits import RetryLimits
from lora_worker.configuration.settings import Settings
from lora_worker.database.answers import BreakersAnswer, EndpointAnswer, PlaceRow, ServingErrand, Stray, WorkerOrders
from lora_worker.database.functions import SCHEMA_VERSION
from lora_worker.database.queue_health import QueueHealth
from lora_worker.database.rows import Assignment, DatasetClaim, Lease, News
from lora_worker.database.version_rows import AliasRow, EndpointRelease, ReleaseNote
from lora_worker.database.webhook_rows import WebhookState
from lora_worker.launchers.base import EndpointHealth, Guide, LaunchRef, LaunchState, Observation
from lora_worker.money.pricing import load_prices
from lora_worker.money.speeds import RunSpeed
from lora_worker.runs import advance
from lora_worker.runs.state.events import Settled
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.services import HeavySlots, Services

START = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class FakeQueue:
    """Returns the answers that a test sets, and records its calls.

    `test_fake_queues.py` compares it with the real queue.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.to_adopt: list[Assignment] = []
        self.to_claim: list[Assignment] = []
        self.lost: set[UUID] = set()
        self.failing: Exception | None = None
        self.drain = False
        self.places: dict[str, dict[str, Any]] = {}
        self.places_asked = 0
        self.checked_in: set[UUID] = set()
        self._held: set[UUID] = set()

    async def check_schema(self) -> int:
        self.calls.append("check_schema")
        if self.failing:
            raise self.failing
        return SCHEMA_VERSION

    async def publish_terms(self, terms: Mapping[str, Any]) -> bool:
        return False

    async def training_run_speed(self, base_model: str, gpu_type: str) -> RunSpeed | None:
        return None

    async def report_worker(self, report: Mapping[str, Any]) -> WorkerOrders:
        self.reports.append(dict(report))
        return {"drain": self.drain}

    async def adopt(self, max_runs: int, launchers: Sequence[str]) -> list[Assignment]:
        self.calls.append("adopt")
        return self._hand_out(self.to_adopt, max_runs)

    async def claim(self, max_jobs: int, max_per_user: int | None) -> list[Assignment]:
        self.calls.append("claim")
        return self._hand_out(self.to_claim, max_jobs)

    def _hand_out(self, waiting: list[Assignment], at_most: int) -> list[Assignment]:
        found = waiting[:at_most]
        del waiting[:at_most]
        self._held |= {assignment.run.id for assignment in found}
        return found

    async def claim_dataset(self) -> DatasetClaim | None:
        return None

    async def renew(self, leases: Iterable[Lease]) -> list[News]:
        self.calls.append("renew")
        return [
            News(run_id=lease.run_id, held=lease.run_id not in self.lost, external_job_id="ext") for lease in leases
        ]

    async def record_progress(self, reports: list[dict[str, Any]]) -> dict[UUID, bool]:
        self.calls.append(f"record_progress {len(reports)}")
        runs = [UUID(report["run_id"]) for report in reports]
        return {run: run not in self.lost for run in runs}

    async def stray_launches(self, max_launches: int) -> list[Stray]:
        return []

    async def claim_endpoint_release(self, lease_seconds: int, again_seconds: int) -> EndpointRelease | None:
        return None

    async def note_endpoint_release(self, note: ReleaseNote) -> bool:
        return True

    async def list_training_aliases(self, name: str | None = None, user_id: UUID | None = None) -> list[AliasRow]:
        return []

    async def abandoned_uploads(self, bucket: str, max_objects: int) -> list[str]:
        return []

    async def claim_serving_errand(self, *, launcher: str, endpoint: str) -> ServingErrand | None:
        return None

    async def health(self) -> QueueHealth:
        return {
            "queued": len(self.to_claim), "oldest_wait_seconds": None, "live_runs": 0, "expired_leases": 0,
            "stray_launches": 0, "spent_today": 0.0, "failed_today": 0, "failed": [], "no_worker": None,
            "had_worker": True, "workers": [], "endpoints": [],
            "held": {"operator_holds": [], "breakers": [], "endpoint_problems": []}, "runs": [], "waiting": [],
        }  # fmt: skip

    async def pass_breakers(
        self, run_id: UUID, lease_token: UUID, *, base_model: str, endpoint: str, look_again_seconds: int
    ) -> BreakersAnswer:
        return {"go": True}

    async def note_endpoint(
        self, *, launcher: str, endpoint: str, state: str, problem: str | None, without_gpu: bool
    ) -> EndpointAnswer:
        self.calls.append(f"note_endpoint {state}")
        return {"starting_seconds": 0.0, "without_gpu_seconds": 0.0}

    async def training_places(
        self, endpoints: Sequence[str], *, base_model: str, run_id: UUID | None = None
    ) -> list[PlaceRow]:
        """What a test has set of an endpoint in `places`, and nothing against the others."""
        self.places_asked += 1
        nothing: PlaceRow = {
            "endpoint": "", "launches": 0, "without_gpu_seconds": 0.0, "passed_over_seconds": 0.0, "held_seconds": 0.0,
            "was_left": False, "problem": None,
        }  # fmt: skip
        return [{**nothing, **self.places.get(endpoint, {}), "endpoint": endpoint} for endpoint in endpoints]  # type: ignore[typeddict-item]

    async def training_places_of_runs(
        self, endpoints: Sequence[str], runs: Mapping[UUID, str]
    ) -> dict[UUID, list[PlaceRow]]:
        self.calls.append(f"training_places_of_runs {len(runs)}")
        return {run_id: await self.training_places(endpoints, base_model=name) for run_id, name in runs.items()}

    async def put_back_run(
        self, run_id: UUID, lease_token: UUID, *, reason: str, seconds: int
    ) -> Literal["put_back", "launched", "lease_lost"]:
        self.calls.append("put_back_run")
        return "lease_lost" if run_id in self.lost else "put_back"

    async def withdraw_launch(self, run_id: UUID, lease_token: UUID, *, pass_over_seconds: int) -> bool:
        self.calls.append(f"withdraw_launch {pass_over_seconds}")
        return run_id not in self.checked_in

    async def webhook_state(self) -> list[WebhookState]:
        return []

    async def claim_operator_notice(self, key: str, again_seconds: int) -> bool:
        self.calls.append(f"claim_operator_notice {key}")
        if self.failing:
            raise self.failing
        return True

    async def release(self) -> int:
        self.calls.append("release")
        released = self._held - self.lost
        self.lost |= released
        return len(released)


GUIDE = Guide(
    "The cloud", "the cloud's console", "check CLOUD_KEY", "give CLOUD_KEY access to it", "The cloud shows its volume."
)


class FakeLauncher:
    name = "runpod"
    guide = GUIDE
    longest_launch_seconds = 691_200.0
    takes_errands = True
    endpoint = "https://api.runpod.ai/v2/ep"

    def __init__(self) -> None:
        self.looked: list[str] = []
        self.broken: set[str] = set()

    def reaches(self, endpoint: str) -> bool:
        return True

    async def observe(self, launch: LaunchRef) -> Observation:
        self.looked.append(launch.external_job_id)
        if launch.external_job_id in self.broken:
            raise RuntimeError("a bug")
        return Observation(LaunchState.RUNNING)

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(True, 1, 0)


class ForgetfulLauncher(FakeLauncher):
    """A launcher that reports the state that the test sets."""

    def __init__(self, state: LaunchState) -> None:
        super().__init__()
        self.state = state
        self.cancelled: list[str] = []

    async def observe(self, launch: LaunchRef) -> Observation:
        return Observation(self.state, execution_seconds=90.0 if self.state is LaunchState.RUNNING else None)

    async def cancel(self, launch: LaunchRef) -> bool:
        self.cancelled.append(launch.external_job_id)
        if self.state is not LaunchState.MISSING:
            self.state = LaunchState.CANCELLED
        return True


class Shelf:
    """A storage that has the manifest, or not."""

    def __init__(self, manifest: bool) -> None:
        self.manifest = manifest

    async def size(self, bucket: str, path: str) -> int | None:
        return 1 if self.manifest and path.endswith("manifest.json") else None


def make_services(**overrides: Any) -> Services:
    """Services that make no network call."""
    settings = Settings(
        supabase_url="http://127.0.0.1:9",
        supabase_service_role_key="sb_secret_x",
        supabase_publishable_key="sb_publishable_x",
        lease_seconds=60,
        doubt_seconds=100,
        poll_seconds=0.01,
        _env_file=None,
    )
    made: dict[str, Any] = {
        "settings": settings,
        "queue": FakeQueue(),
        "storage": None,
        "launcher": FakeLauncher(),
        "http": None,
        "prices": load_prices(),
        "retry_limits": RetryLimits(3, 5, 1, 10),
        "heavy_slots": HeavySlots(2),
        "clock": Clock(),
    }
    return Services(**{**made, **overrides})


def assignment(external_job_id: str | None = "ext", **run: Any) -> Assignment:
    user, job = uuid4(), uuid4()
    return Assignment.model_validate(
        {
            "run": {
                "id": uuid4(), "job_id": job, "user_id": user, "attempt": 1, "status": "running",
                "lease_token": uuid4(), "external_job_id": external_job_id, "created_at": datetime.now(UTC), **run,
            },
            "job": {
                "id": job, "user_id": user, "dataset_id": uuid4(), "status": "running", "gpu_config": {"type": "H100"},
            },
            "dataset": None,
        }
    )  # fmt: skip


def note_settlings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace settling, as `advance` calls it; returns the list to which every ending is added."""
    endings: list[Any] = []

    async def settle(held: HeldRun, ending: Any) -> Settled:
        endings.append(ending)
        return Settled("completed")

    monkeypatch.setattr(advance, "settle", settle)
    return endings


def note_launches(monkeypatch: pytest.MonkeyPatch) -> list[HeldRun]:
    """Replace launching, as `advance` calls it; returns the list to which every launched run is added."""
    launched: list[HeldRun] = []

    async def note(held: HeldRun) -> None:
        launched.append(held)

    monkeypatch.setattr(advance, "launch", note)
    return launched
