"""The runs that this worker holds: how they are taken, renewed, worked on, and let go.

Work on a run happens in a task of its own, so that a slow or broken run holds up nobody else's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

import structlog

from lora_contract.crash_points import crash_point
from lora_worker.database.rows import Assignment
from lora_worker.duties.duty import RoundResult
from lora_worker.duties.faults import Faults, Meaning, round_work, run_work
from lora_worker.errors import ServiceError
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import ADOPTED, CLAIMED, CYCLE_SECONDS, HELD_RUNS, LEASES_LOST
from lora_worker.observability.readiness import Readiness
from lora_worker.observability.telemetry import logging_run
from lora_worker.runs.advance import advance, finish_log
from lora_worker.runs.applying import apply
from lora_worker.runs.outcomes.failures import WORKER_FAULT
from lora_worker.runs.state.events import (
    CycleBegun,
    CycleDone,
    CycleFailed,
    CyclePutOff,
    PlacesSeen,
    Renewed,
    Reported,
    Settled,
    StopDecided,
)
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.state.journey import record_taking
from lora_worker.runs.steps.placing import base_model_of_leaving, look_for_all
from lora_worker.services import Services

log = structlog.get_logger(__name__)

_MAX_ADOPTED = 500
_FAULTS_BEFORE_GIVING_UP = 8
_LOOK = round_work("a look at the places")


class HeldRuns:
    """The runs that this worker holds, by their ids, and the work on them."""

    def __init__(
        self, services: Services, readiness: Readiness, faults: Faults, *, is_stopping: Callable[[], bool]
    ) -> None:
        self.held: dict[UUID, HeldRun] = {}
        self.given_up: deque[str] = deque(maxlen=_MAX_ADOPTED)
        """Why runs were given up that were not settled: one sentence for each."""
        self._services = services
        self._readiness = readiness
        self._faults = faults
        self._is_stopping = is_stopping
        self._tasks: dict[HeldRun, asyncio.Task[None]] = {}
        """The latest work on each held run."""
        self._working_since: dict[HeldRun, float] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        """Work that still goes on for runs that are not held any more: a stop waits for it as for all other work."""

    @property
    def unfinished_work(self) -> list[asyncio.Task[None]]:
        """All work that is not done."""
        return [task for task in [*self._tasks.values(), *self._leaving] if not task.done()]

    @property
    def longest_work_seconds(self) -> float:
        """For how long the longest work on a run that is under way has been going on; 0 while there is none."""
        begun = list(self._working_since.values())
        return self._services.clock() - min(begun) if begun else 0.0

    # ── taking ──────────────────────────────────────────────────────────────────────────────────────

    async def adopt(self) -> RoundResult:
        """Take the runs whose worker has ended or lost its lease.

        Raises:
            ServiceError: the database did not answer.
        """
        asked_at = self._services.clock()
        adopted = await self._services.queue.adopt(_MAX_ADOPTED, self._services.places.launchers)
        if adopted:
            crash_point("worker.adopt.after")
        ADOPTED.inc(len(adopted))
        self._take(adopted, asked_at, "adopted", Action.RUN_ADOPTED)
        return RoundResult(len(adopted))

    async def claim(self) -> RoundResult:
        """Take as many queued jobs as this worker has free slots.

        Raises:
            ServiceError: the database did not answer.
        """
        settings = self._services.settings
        free = settings.slots - len(self.held)
        if free <= 0 or self._is_stopping():
            return RoundResult()
        crash_point("worker.claim.before")
        asked_at = self._services.clock()
        claimed = await self._services.queue.claim(free, settings.max_per_user)
        if claimed:
            crash_point("worker.claim.after")
        CLAIMED.inc(len(claimed))
        self._take(claimed, asked_at, "claimed", Action.RUN_CLAIMED)
        return RoundResult(len(claimed))

    def _take(self, assignments: list[Assignment], asked_at: float, how: str, action: Action) -> None:
        for assignment in assignments:
            run = assignment.run
            former = self.held.get(run.id)
            if former is not None:
                # Its lease ran out, and the adoption gave this same worker a new one.
                self.forget(former)
            with logging_run(run.id, run.job_id):
                self.held[run.id] = HeldRun.take(self._services, assignment, asked_at=asked_at)
                log.info(how, action=action, attempt=run.attempt, status=run.status)
            record_taking(self.held[run.id], how, asked_seconds_ago=self._services.clock() - asked_at)
        HELD_RUNS.set(len(self.held))

    # ── renewing ────────────────────────────────────────────────────────────────────────────────────

    async def renew(self) -> RoundResult:
        """Renew every lease in one call, and take in what the database says of each run.

        Raises:
            ServiceError: the database did not answer.
        """
        runs = dict(self.held)
        if not runs:
            return RoundResult()
        asked_at = self._services.clock()
        renewed = 0
        for news in await self._services.queue.renew([held.lease for held in runs.values()]):
            held = runs[news.run_id]
            if self.held.get(news.run_id) is not held or held.settled_as is not None:
                continue
            if news.settled_as:
                apply(held, Settled(news.settled_as))
                self.forget(held)
            elif not news.held:
                self._drop(held, "lease lost")
            else:
                apply(held, Renewed(news, asked_at))
                renewed += 1
        return RoundResult(renewed)

    # ── working ─────────────────────────────────────────────────────────────────────────────────────

    async def poll(self, *, until_settled: bool = False) -> RoundResult:
        """Do one cycle of work on every held run, side by side, and write all progress in one call.

        A cycle that takes longer than the poll interval, as a long preflight may, goes on by itself, so that the other
        runs' progress is not kept waiting; with `until_settled` it is waited for.

        Raises:
            ServiceError: the database did not take the progress.
        """
        with CYCLE_SECONDS.time():
            idle = [held for held in self.held.values() if not self._is_at_work(held)]
            await self._look_at_places(idle)
            for held in idle:
                if self.held.get(held.assignment.run.id) is held and not self._is_at_work(held):
                    self._tasks[held] = asyncio.create_task(self._work(held), name=f"run {held.run_id}")
            tasks = [self._tasks[held] for held in self.held.values() if held in self._tasks]
            if tasks:
                patience = None if until_settled else self._services.settings.poll_seconds
                await asyncio.wait(tasks, timeout=patience)
            put_off = [held.put_off for held in self.held.values()]
            self._readiness.note_runs(put_off)
            await self._send_reports()
        return RoundResult(len(tasks), tuple(filter(None, put_off)))

    async def _look_at_places(self, runs: list[HeldRun]) -> None:
        """Ask what is known of the places once for all runs that may leave theirs, however many wait there."""
        leaving: dict[UUID, str] = {}
        for held in runs:
            try:
                base_model = base_model_of_leaving(held)
            except Exception as error:
                self._faults.note(run_work(held.run_id), error)
                continue
            if base_model is not None:
                leaving[held.assignment.run.id] = base_model
        try:
            for run_id, rows in (await look_for_all(leaving, self._services)).items():
                if run_id in self.held:
                    apply(self.held[run_id], PlacesSeen(tuple(rows)))
        except ServiceError:
            return  # each asks for itself, and tells it
        except Exception as error:
            self._faults.note(_LOOK, error)

    async def poll_early(self, run_ids: Collection[UUID]) -> RoundResult:
        """Do one cycle of work on these runs now, as far as they are held and nobody works on them.

        Raises:
            ServiceError: the database did not take the progress.
        """
        chosen = [self.held[run_id] for run_id in run_ids if run_id in self.held]
        for held in chosen:
            if not self._is_at_work(held):
                self._tasks[held] = asyncio.create_task(self._work(held), name=f"run {held.run_id}")
        tasks = [self._tasks[held] for held in chosen]
        if tasks:
            await asyncio.wait(tasks, timeout=self._services.settings.poll_seconds)
            await self._send_reports()
        return RoundResult(len(tasks))

    def _is_at_work(self, held: HeldRun) -> bool:
        task = self._tasks.get(held)
        return task is not None and not task.done()

    async def _work(self, held: HeldRun) -> None:
        """One cycle of work on a run; whatever it raises is noted here."""
        self._working_since[held] = self._services.clock()
        with logging_run(held.assignment.run.id, held.assignment.run.job_id):
            try:
                apply(held, CycleBegun())
                await advance(held)
                apply(held, CycleDone())
                self._faults.over(run_work(held.run_id))
            except Exception as error:
                self._note_fault(held, error)
            finally:
                self._working_since.pop(held, None)
            if held.settled_as is not None:
                self._readiness.settled()
                self.forget(held)
                await self._finish_log(held)

    async def _finish_log(self, held: HeldRun) -> None:
        """Keep the container's log of a run that is settled, and so not held any more. It blocks no slot."""
        task = asyncio.current_task()
        assert task is not None
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        await finish_log(held)

    def _note_fault(self, held: HeldRun, error: Exception) -> None:
        problem = str(error)
        match self._faults.note(run_work(held.run_id), error):
            case Meaning.LOST:
                self._drop(held, problem)
                return
            case Meaning.BUG:
                problem = "the work on it failed; see the log"
                apply(held, CycleFailed())
                if held.faults_in_a_row >= _FAULTS_BEFORE_GIVING_UP:
                    apply(held, StopDecided(WORKER_FAULT))
            case Meaning.RETRY | Meaning.END:
                apply(held, CyclePutOff(problem))
        if held.is_settling:
            self._readiness.settling_failed(held.assignment.run.id, problem)

    async def _send_reports(self) -> None:
        reporting = [held for held in self.held.values() if held.report is not None]
        trusted = [held for held in reporting if self._services.clock() < held.trusted_until]
        reports: list[dict[str, Any]] = [held.report for held in trusted if held.report is not None]
        for held in reporting:
            apply(held, Reported(None))
        if not reports:
            return
        crash_point("worker.progress.before")
        applied = await self._services.queue.record_progress(reports)
        crash_point("worker.progress.after")
        for held in trusted:
            if not applied.get(held.assignment.run.id, False) and not self._is_at_work(held):
                # Work that goes on may have settled the run just now: then the next renewal says so.
                self._drop(held, "progress refused")

    # ── letting go ──────────────────────────────────────────────────────────────────────────────────

    def _drop(self, held: HeldRun, reason: str) -> None:
        """Let go of a run that another worker may have by now."""
        LEASES_LOST.inc()
        self.given_up.append(reason)
        with logging_run(held.assignment.run.id, held.assignment.run.job_id):
            log.warning("run given up", action=Action.RUN_GIVEN_UP, reason=reason)
        task = self.forget(held)
        if task is not None:
            # Nothing that it does counts any more, and it may be reading in a place that others wait for.
            task.cancel()

    def forget(self, held: HeldRun) -> asyncio.Task[None] | None:
        """Hold the run no longer; returns the work on it that goes on, unless it is the caller's own."""
        run_id, task = held.assignment.run.id, self._tasks.pop(held, None)
        if task is None or task.done() or task is asyncio.current_task():
            task = None
        else:
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        # An adoption may already have put a newer lease of the same run in its place.
        if self.held.get(run_id) is held:
            del self.held[run_id]
            self._readiness.forget(run_id)
            with logging_run(run_id, held.assignment.run.job_id):
                self._faults.over(run_work(held.run_id))
        HELD_RUNS.set(len(self.held))
        return task
