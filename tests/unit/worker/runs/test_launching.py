"""The backoff after a launch that was not accepted, and the limits of a launch."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.protocol import Channel, DatasetRef, Limits, OutputRef, Request
from lora_worker.configuration.contradictions import PUBLISHING_SECONDS
from lora_worker.database.submission_rows import TRIAL_NAME
from lora_worker.datasets.preflight import make_policy
from lora_worker.errors import PreflightError, ServiceUnavailableError
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.money.billing import Rate
from lora_worker.money.pricing import load_prices
from lora_worker.runs import advance
from lora_worker.runs.applying import apply
from lora_worker.runs.outcomes.failures import OVER_BUDGET, OVER_TIME, WORKER_KILLED, Failure
from lora_worker.runs.outcomes.retries import patience_seconds
from lora_worker.runs.state.events import Ending, PutOff, Settled
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps import launching
from lora_worker.runs.steps.limits import exceeded_limit
from tests.scripted import assignment, make_services


@pytest.mark.parametrize(("tries", "seconds"), [(1, 30), (2, 60), (5, 480), (6, 600), (1_026, 600), (10**6, 600)])
def test_launch_retries_back_off_up_to_ten_minutes(tries: int, seconds: float) -> None:
    assert patience_seconds(30.0, tries) == seconds


def test_unconfirmed_launch_gets_its_whole_waiting_time() -> None:
    assert patience_seconds(3600.0, 1) == patience_seconds(3600.0, 2_000) == 3600


def test_busy_launcher_is_not_called_before_its_retry_after() -> None:
    services = make_services()
    holding = HeldRun.take(services, assignment(None, status="claimed"), asked_at=services.clock())
    for _ in range(20):
        apply(holding, PutOff("RunPod takes no more requests now (429)", 30.0, exact_seconds=1.0))
        assert holding.launch_not_before == services.clock() + 1
    apply(holding, PutOff("RunPod is not reachable", 30.0))
    assert holding.launch_not_before == services.clock() + 30, "what was waited for a busy launcher was no try"


def test_refused_launches_never_fail_a_job() -> None:
    services = make_services()
    holding = HeldRun.take(services, assignment(None, status="claimed", launches=1_500), asked_at=services.clock())
    holding.launch_tries = 1_500
    apply(holding, PutOff("RunPod is not reachable", 30.0))
    assert holding.launch_not_before == services.clock() + 600


@pytest.mark.parametrize("max_run_seconds", [3600, 43_200, 518_400])
@pytest.mark.parametrize("budget", [10, 1_000_000])
def test_launch_ttl_covers_the_longest_wait_and_execution(max_run_seconds: float, budget: float) -> None:
    policy = make_policy(
        Rate.at(load_prices()[0], gpu_count=1, max_cost=budget),
        spent_cost=0,
        spent_seconds=0,
        max_run_seconds=max_run_seconds,
        queue_allowance_seconds=86_400,
    )
    assert policy.execution_seconds <= max_run_seconds
    assert policy.ttl_seconds - policy.execution_seconds == 86_400
    assert policy.ttl_seconds <= 7 * 86_400


@pytest.mark.parametrize("key", ["sb_secret_other", "sb_secret_x", "rpa_x", "eyJ.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.x"])
async def test_a_request_with_a_secret_key_is_never_sent(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    posted: list[Any] = []
    services = make_services()
    # The settings' own check would refuse this key.
    services.settings.supabase_publishable_key = SecretStr(key)
    holding = HeldRun.take(services, assignment(None, status="claimed"), asked_at=services.clock())
    monkeypatch.setattr(services.artifacts_bucket, "require", lambda _: asyncio.sleep(0))
    monkeypatch.setattr(services.queue, "begin_handling", lambda *_: asyncio.sleep(0, 1), raising=False)
    monkeypatch.setattr(launching, "check_job", lambda *_: asyncio.sleep(0, "a plan"))
    monkeypatch.setattr(launching, "begin_launch", lambda *request: asyncio.sleep(0, posted.append(request)))

    async def make_request(holding: HeldRun, _: Any) -> Request:
        public = holding.services.settings.supabase_publishable_key.get_secret_value()
        return Request(
            job_id="job", run_id="run", dataset=DatasetRef(url="https://x/y"), hyperparameters=Hyperparameters(),
            gpu_config=GpuConfig(), channel=Channel(url="https://x", key=public, token="t" * 64),
            output=OutputRef(bucket="b", prefix="p/"), limits=Limits(max_seconds=60),
        )  # fmt: skip

    monkeypatch.setattr(launching, "_make_request", make_request)
    await advance.launch(holding)
    assert posted == []
    assert holding.put_off is not None
    assert holding.put_off.startswith("SUPABASE_PUBLISHABLE_KEY holds ")
    assert key not in holding.put_off
    services.settings.supabase_publishable_key = SecretStr("sb_publishable_x")
    await advance.launch(holding)
    assert len(posted) == 1


def test_adapter_is_asked_to_be_served_by_its_jobs_name_a_trials_is_not() -> None:
    job = UUID("0a1b2c3d-0000-4000-8000-000000000001")
    assert launching.asked_name(job, "Zebras") == "adapter-0a1b2c3d"
    assert launching.asked_name(job, TRIAL_NAME) is None


async def test_run_given_up_is_not_begun_again_by_the_same_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    services = make_services()
    counted: list[Any] = []

    async def begin_handling(*lease: Any) -> int:
        counted.append(lease)
        return int(services.settings.max_handlings) + 1

    async def settle(held: HeldRun, ending: Ending) -> Settled:
        assert ending.failure == WORKER_KILLED
        raise ServiceUnavailableError("db", "away")

    monkeypatch.setattr(services.artifacts_bucket, "require", lambda _: asyncio.sleep(0))
    monkeypatch.setattr(services.queue, "begin_handling", begin_handling, raising=False)
    monkeypatch.setattr(advance, "settle", settle)
    holding = HeldRun.take(services, assignment(None, status="claimed"), asked_at=services.clock())
    for _ in range(2):
        with pytest.raises(ServiceUnavailableError):
            await advance.launch(holding)
    assert len(counted) == 1


def test_retry_gets_the_time_and_money_that_is_left() -> None:
    rate = Rate(gpu_type="H100", gpu_count=1, price_per_hour=4.0, max_cost=100)
    policy = make_policy(
        rate, spent_cost=40, spent_seconds=36_000, max_run_seconds=43_200, queue_allowance_seconds=86_400
    )
    assert policy.execution_seconds == 7_200
    policy = make_policy(
        rate, spent_cost=98, spent_seconds=36_000, max_run_seconds=43_200, queue_allowance_seconds=86_400
    )
    assert policy.execution_seconds == 1_800


def test_job_without_time_left_is_refused_with_both_figures() -> None:
    rate = Rate(gpu_type="H100", gpu_count=1, price_per_hour=4.0, max_cost=100)
    with pytest.raises(PreflightError, match=r"used 11\.9 of the 12\.0 GPU hours") as refused:
        make_policy(rate, spent_cost=47, spent_seconds=43_000, max_run_seconds=43_200, queue_allowance_seconds=86_400)
    assert refused.value.code == "time_limit"


@pytest.mark.parametrize("price", [1.0, 8.0], ids=["time ends first", "money ends first"])
def test_trained_adapter_is_published_within_one_named_allowance(price: float) -> None:
    """What earlier runs took beyond the limits is part of it, though no bill shows it."""
    rate = Rate(gpu_type="H100", gpu_count=1, price_per_hour=price, max_cost=80)
    longest = min(43_200, 80 / price * 3600)

    def left(spent_seconds: float, *, awaits_upload: bool = True) -> float:
        return make_policy(
            rate,
            spent_cost=rate.cost(spent_seconds),
            spent_seconds=spent_seconds,
            max_run_seconds=43_200,
            queue_allowance_seconds=86_400,
            awaits_upload=awaits_upload,
        ).execution_seconds

    assert left(longest - 210) == PUBLISHING_SECONDS
    assert left(longest + 400) == PUBLISHING_SECONDS - 400
    assert left(longest - 7_200) == left(longest - 7_200, awaits_upload=False) == pytest.approx(7_200, abs=10)
    for spent_seconds, awaits_upload in [(longest - 210, False), (longest + PUBLISHING_SECONDS - 210, True)]:
        with pytest.raises(PreflightError):
            left(spent_seconds, awaits_upload=awaits_upload)


@pytest.mark.parametrize(("max_cost", "failure"), [(1_000.0, OVER_TIME), (20.0, OVER_BUDGET)])
@pytest.mark.parametrize("awaits_upload", [False, True])
def test_worker_lets_a_publishing_run_use_its_allowance(max_cost: float, failure: Failure, awaits_upload: bool) -> None:
    services = make_services()
    longest = min(services.settings.max_run_seconds, max_cost / 2 * 3600)
    launched = {"gpu_type": "H100", "gpu_count": 1, "price_per_hour": 2.0, "max_cost": max_cost}
    spent = {"spent_seconds": longest, "spent_cost": longest * 2 / 3600, "awaits_upload": awaits_upload}
    now = datetime.now(UTC)
    holding = HeldRun.take(
        services, assignment(launched_with=launched, checked_in_at=now, **spent), asked_at=services.clock()
    )
    running = Observation(LaunchState.RUNNING)
    holding.measured_seconds = PUBLISHING_SECONDS
    assert exceeded_limit(holding, running) == (None if awaits_upload else failure)
    holding.measured_seconds = PUBLISHING_SECONDS + 200
    assert exceeded_limit(holding, running) == failure
