"""The metrics of live runs: how many are at which stage, and how far each is.

They are read from the held runs at each scrape, so a run that has ended leaves no series behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from uuid import UUID

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lora_contract.protocol import STAGES, Progress
from lora_worker.duties.held_runs import HeldRuns
from lora_worker.observability.metrics import BUILD
from lora_worker.runs.state.held_run import HeldRun

MAX_RUNS = 200
"""The most runs with series of their own: each has four, and they change with every job."""

PREFLIGHT, WAITING, STOPPING = "preflight", "waiting_for_gpu", "stopping"
LIVE_STAGES = (PREFLIGHT, WAITING, *STAGES, STOPPING)

_LABELS = ("job_id", "run_id")


def live_stage(held: HeldRun) -> str:
    """The stage of a held run: one of `LIVE_STAGES`."""
    if held.is_to_stop:
        return STOPPING
    if held.has_checked_in:
        return str(held.progress.stage if held.progress else STAGES[0])
    return PREFLIGHT if held.news.external_job_id is None else WAITING


class RunMetrics(Collector):
    """Reads the metrics of live runs. It is called from the threads of the health port, and only reads."""

    def __init__(
        self,
        runs: Mapping[UUID, HeldRun],
        *,
        problem: Callable[[], str | None],
        longest_work_seconds: Callable[[], float],
    ) -> None:
        self._runs = runs
        self._problem = problem
        self._longest_work_seconds = longest_work_seconds

    def describe(self) -> Iterable[Metric]:
        """No metric in advance: their samples depend on the runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        held = list(self._runs.values())
        yield GaugeMetricFamily(
            "lora_worker_ready", "1 while the worker does its work, else 0", int(not self._problem())
        )
        yield GaugeMetricFamily(
            "lora_worker_longest_work_seconds",
            "For how long the longest work on a run has been going on",
            self._longest_work_seconds(),
        )
        yield _by_stage(held)
        shown = held[:MAX_RUNS]
        yield GaugeMetricFamily(
            "lora_worker_runs_without_series", "Live runs beyond those with series of their own", len(held) - len(shown)
        )
        yield from _of_runs(shown)


def _by_stage(held: Iterable[HeldRun]) -> Metric:
    counts = Counter(map(live_stage, held))
    family = GaugeMetricFamily("lora_worker_live_runs", "Runs this worker holds, by stage", labels=["stage"])
    for stage in LIVE_STAGES:
        family.add_metric([str(stage)], counts[stage])
    return family


def _of_runs(held: Iterable[HeldRun]) -> Iterable[Metric]:
    families: dict[str, Any] = {
        name: GaugeMetricFamily(f"lora_worker_run_{name}", text, labels=_LABELS)
        for name, text in (
            ("progress_ratio", "How much of a live run is done, from 0 to 1"),
            ("step", "The optimizer step that a live run has reached"),
            ("steps", "The optimizer steps that a live run will take"),
            ("training_loss", "The latest training loss of a live run, in nats per token"),
        )
    }
    for one in held:
        progress = one.progress
        if progress is None:
            continue
        values = {
            "progress_ratio": progress.progress / 100,
            "step": progress.current_step,
            "steps": progress.total_steps,
            "training_loss": _latest_loss(progress),
        }
        for name, value in values.items():
            if value is not None:
                families[name].add_metric([str(one.assignment.run.job_id), one.run_id], value)
    return families.values()


def _latest_loss(progress: Progress) -> float | None:
    losses = (point.training_loss for point in reversed(progress.points))
    return next((loss for loss in losses if loss is not None), None)


@contextmanager
def showing_runs(runs: HeldRuns, problem: Callable[[], str | None]) -> Iterator[None]:
    """Show these runs, and whether the worker is ready, in `/metrics` until the context ends."""
    BUILD.info({"version": version("lora-worker")})
    collector = RunMetrics(runs.held, problem=problem, longest_work_seconds=lambda: runs.longest_work_seconds)
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)
