"""The metrics count what happened, with labels that nobody outside can multiply."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from lora_contract.error_codes import ErrorCode
from lora_contract.protocol import Point, Progress, Stage
from lora_worker.duties.daemon import Daemon
from lora_worker.duties.duty import Duty, RoundResult
from lora_worker.duties.run_metrics import LIVE_STAGES, MAX_RUNS, RunMetrics, live_stage
from lora_worker.errors import ServiceUnavailableError
from lora_worker.observability.calls import MeasuredClient, called
from lora_worker.observability.metrics import count_settlement, status_label
from lora_worker.runs.applying import apply
from lora_worker.runs.outcomes.failures import SILENT, known_code
from lora_worker.runs.state.events import Renewed, StopDecided
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.services import Services
from tests.project import ROOT
from tests.scripted import START, assignment


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# ── calls ───────────────────────────────────────────────────────────────────────────────────────────


def answering(answer: int | Exception) -> MeasuredClient:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)

    return MeasuredClient(transport=httpx.MockTransport(handle))


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (503, "503"),
        (499, "4xx"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (httpx.ConnectError("refused"), "unreachable"),
    ],
)
async def test_failed_call_is_counted_by_service_and_status(answer: int | Exception, status: str) -> None:
    labels = {"service": "database", "operation": "claim_training_jobs", "status": status}
    before = value("lora_worker_api_errors_total", **labels)
    async with answering(answer) as client:
        if isinstance(answer, Exception):
            with pytest.raises(httpx.TransportError):
                await client.post("http://x", extensions=called("database", "claim_training_jobs"))
        else:
            async with client.stream("POST", "http://x", extensions=called("database", "claim_training_jobs")):
                pass
    assert value("lora_worker_api_errors_total", **labels) == before + 1


async def test_good_call_is_timed_and_is_no_error() -> None:
    labels = {"service": "storage", "operation": "bucket"}
    before = value("lora_worker_api_call_seconds_count", **labels)
    async with answering(200) as client:
        await client.get("http://x", extensions=called("storage", "bucket"))
        await client.get("http://x")
    assert value("lora_worker_api_call_seconds_count", **labels) == before + 1
    page = generate_latest(REGISTRY).decode()
    assert 'api_errors_total{operation="bucket"' not in page
    assert 'operation="other",service="other"' in page


def test_any_status_has_one_of_few_labels() -> None:
    assert len({status_label(status) for status in range(1000)}) < 25


# ── settlements ─────────────────────────────────────────────────────────────────────────────────────


def failure_codes() -> Iterator[str]:
    """Each code that the worker's own sources give to a failure or a refusal of the preflight."""
    for path in (ROOT / "worker" / "lora_worker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                if node.func.id in {"Failure", "PreflightError"} and isinstance(first, ast.Constant):
                    yield str(first.value)


def test_every_code_of_the_worker_is_a_known_label() -> None:
    codes = {*failure_codes(), *ErrorCode, "result_refused", "waiting_for_dataset", "hyperparameters_invalid"}
    assert len(codes) > 40
    assert {code for code in codes if known_code(code) == "other"} == set()
    assert known_code("a container's own words") == "other"


def test_settlement_counts_outcome_retry_time_and_spend() -> None:
    names = ("lora_worker_gpu_seconds_total", "lora_worker_spend_usd_total")
    before = [value(name) for name in names]
    failed = {"job_status": "queued", "error_code": "gpu_lost"}
    settled, retried = (
        value("lora_worker_settled_total", **failed),
        value("lora_worker_retries_total", fault="infrastructure"),
    )
    count_settlement("queued", error_code="gpu_lost", fault="infrastructure", gpu_seconds=90, spend=0.25)
    count_settlement("completed", error_code=None, fault=None, gpu_seconds=-5, spend=-1)
    assert value("lora_worker_settled_total", **failed) == settled + 1
    assert value("lora_worker_settled_total", job_status="completed", error_code="none") >= 1
    assert value("lora_worker_retries_total", fault="infrastructure") == retried + 1
    assert [value(name) for name in names] == [before[0] + 90, before[1] + 0.25]


# ── live runs ───────────────────────────────────────────────────────────────────────────────────────


def held_run(services: Services, external_job_id: str | None = "ext", **run: object) -> HeldRun:
    return HeldRun.take(services, assignment(external_job_id, **run), asked_at=START)


def trains(held: HeldRun, step: int) -> None:
    news = held.news.model_copy(
        update={
            "checked_in_at": held.services.now(),
            "progress": Progress(
                run_id=held.run_id, stage=Stage.TRAINING, progress=60, current_step=step, total_steps=10,
                points=[
                    Point(step=1, epoch=0.1, training_loss=2.5), Point(step=2, epoch=0.2, training_loss=1.5),
                    Point(step=3, epoch=0.3, validation_loss=9),
                ],
            ).model_dump(mode="json"),
            "progress_number": step,
        }
    )  # fmt: skip
    apply(held, Renewed(news, START))


def page_of(runs: dict[object, HeldRun], problem: str | None = None) -> str:
    registry = CollectorRegistry()
    registry.register(RunMetrics(runs, problem=lambda: problem, longest_work_seconds=lambda: 7.5))  # type: ignore[arg-type]
    return generate_latest(registry).decode()


def test_live_runs_are_counted_by_stage(services: Services) -> None:
    preparing, waiting, training, stopping = (held_run(services, name) for name in (None, "a", "b", "c"))
    trains(training, 3)
    apply(stopping, StopDecided(SILENT))
    runs = {one.run_id: one for one in (preparing, waiting, training, stopping)}
    assert [live_stage(one) for one in runs.values()] == ["preflight", "waiting_for_gpu", "training", "stopping"]
    page = page_of(runs, problem="away")  # type: ignore[arg-type]
    counts = dict(line.split() for line in page.splitlines() if line.startswith("lora_worker_live_runs{"))
    assert len(counts) == len(LIVE_STAGES)
    assert sum(float(count) for count in counts.values()) == 4
    assert counts['lora_worker_live_runs{stage="training"}'] == "1.0"
    assert "lora_worker_ready 0.0" in page
    assert "lora_worker_longest_work_seconds 7.5" in page


def test_series_of_a_run_end_with_it(services: Services) -> None:
    one = held_run(services)
    trains(one, 3)
    runs: dict[object, HeldRun] = {one.run_id: one}
    labels = f'{{job_id="{one.assignment.run.job_id}",run_id="{one.run_id}"}}'
    page = page_of(runs)
    for sample in ("progress_ratio{} 0.6", "step{} 3.0", "steps{} 10.0", "training_loss{} 1.5"):
        assert f"lora_worker_run_{sample.replace('{}', labels)}" in page
    del runs[one.run_id]
    assert one.run_id not in page_of(runs)
    assert "lora_worker_ready 1.0" in page_of(runs)


def test_number_of_series_of_runs_is_bounded(services: Services) -> None:
    many = [held_run(services, f"ext-{number}") for number in range(MAX_RUNS + 3)]
    for one in many:
        trains(one, 1)
    page = page_of({one.run_id: one for one in many})
    assert page.count("lora_worker_run_step{") == MAX_RUNS
    assert "lora_worker_runs_without_series 3.0" in page


# ── rounds ──────────────────────────────────────────────────────────────────────────────────────────


async def test_rounds_are_counted_by_how_they_end(services: Services) -> None:
    async def away() -> RoundResult:
        raise ServiceUnavailableError("db", "away")

    async def well() -> RoundResult:
        return RoundResult(1)

    daemon = Daemon(services)
    ok, failed = (value("lora_worker_rounds_total", duty="watch", result=result) for result in ("ok", "failed"))
    await daemon._rounds.once(Duty("watch", 1, away))
    await daemon._rounds.once(Duty("watch", 1, well))
    assert value("lora_worker_rounds_total", duty="watch", result="ok") == ok + 1
    assert value("lora_worker_rounds_total", duty="watch", result="failed") == failed + 1
    assert value("lora_worker_last_round_timestamp_seconds", duty="watch") > 0
