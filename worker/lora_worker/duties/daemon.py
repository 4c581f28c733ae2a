"""The loops: claim, poll, renew. How they go on when something fails, and how they stop.

Each loop is a small coroutine that does its round and waits for its interval or for the stop. Work on
a run happens in a task of its own, so that a slow or broken run holds up nobody else's.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import UUID

import structlog

from lora_contract.crash_points import crash_point
from lora_worker.database.rows import Assignment
from lora_worker.duties.endpoints import EndpointWatch
from lora_worker.duties.rounds import Rounds
from lora_worker.duties.strays import Reconciler
from lora_worker.duties.validation import Validator
from lora_worker.errors import (
    LeaseLostError,
    PassIncompleteError,
    SchemaMismatchError,
    SchemaMissingError,
    ServiceError,
)
from lora_worker.observability.readiness import Readiness
from lora_worker.observability.repeats import place_of
from lora_worker.observability.telemetry import (
    ADOPTED,
    CLAIMED,
    CYCLE_SECONDS,
    FAULTS_SEEN,
    HELD_RUNS,
    LEASES_LOST,
    OLDEST_WAIT_SECONDS,
    QUEUE_DEPTH,
    redact,
)
from lora_worker.runs.advance import advance
from lora_worker.runs.applying import apply
from lora_worker.runs.events import (
    CycleBegun,
    CycleDone,
    CycleFailed,
    CyclePutOff,
    Renewed,
    Reported,
    Settled,
    StopDecided,
)
from lora_worker.runs.failures import WORKER_FAULT
from lora_worker.runs.held_run import HeldRun
from lora_worker.services import Services

log = structlog.get_logger(__name__)

_MAX_ADOPTED = 500
_FAULTS_BEFORE_GIVING_UP = 8
_WATCH_SECONDS = 60.0
_REPORT_SECONDS = 30.0
"""A worker that was not seen for two minutes does not run, as the database counts."""
_MAX_PROBLEM_CHARACTERS = 300
_STUCK_SECONDS = 300.0
_GRACE_SECONDS = 6.0
"""Calls in flight may finish this long after a stop."""
_RELEASE_SECONDS = 2.0
"""The release of the leases may take this long then, so that the whole exit takes less than ten seconds."""


def _runs_were(count: int) -> str:
    return "1 run was" if count == 1 else f"{count} runs were"


class Daemon:
    """One worker process."""

    def __init__(self, services: Services, *, rng: random.Random | None = None) -> None:
        self.services = services
        self.holdings: dict[UUID, HeldRun] = {}
        self._tasks: dict[HeldRun, asyncio.Task[None]] = {}
        """The latest work on each run that is held."""
        settings = services.settings
        self._readiness = Readiness(
            services.clock, stuck_seconds=max(_STUCK_SECONDS, 10 * settings.request_timeout_seconds)
        )
        self._started_at = services.clock()
        self._stop = asyncio.Event()
        # It spreads rounds, and guards nothing.
        self._rounds = Rounds(self._stop, self._readiness, services.repeats, rng or random.Random())  # noqa: S311
        self._is_single_pass = self._passed = False
        self._given_up: deque[str] = deque(maxlen=_MAX_ADOPTED)
        self._leaving: set[asyncio.Task[None]] = set()
        """Work on runs that are not held any more, until it has ended: a stop waits for it as for all other work."""
        self._validator = Validator(services, self._stop)
        self._reconciler = Reconciler(services, self._stop)
        self._endpoints = EndpointWatch(services, self.holdings)

    @property
    def problem(self) -> str | None:
        """Why this worker does not do its work; None while it does (for /readyz)."""
        return self._readiness.problem

    # ── running and stopping ────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """Begin to stop: no new claim; `run` returns when the leases are released."""
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            SchemaMismatchError: the database moved to a version this worker does not know.
        """
        settings = self.services.settings
        await self._rounds.unless_stopped(self._wait_for_schema())
        if self._stop.is_set():
            log.info("stopped before the database answered")
            return
        log.info("worker started", worker=settings.name, slots=settings.slots)
        loops = [
            self._rounds.repeat("claim", self.claim, settings.poll_seconds),
            self._rounds.repeat("renew", self.renew, self._renew_seconds),
            self._rounds.repeat("poll", self.poll, settings.poll_seconds),
            self._rounds.repeat("strays", self._reconciler.round, settings.poll_seconds),
            self._rounds.repeat("watch", self.watch, _WATCH_SECONDS),
            self._rounds.repeat("report", self.report, _REPORT_SECONDS),
            self._rounds.repeat("endpoint", self._endpoints.round, self._endpoints.interval_seconds),
        ]
        if settings.validate_datasets:
            loops.append(self._rounds.repeat("validate", self._validator.round, settings.poll_seconds))
        await self._until_one_ends(*loops)

    async def run_once(self) -> None:
        """One full pass: adopt, poll, settle, claim, launch, release.

        Raises:
            ServiceError: the database did not answer; what was held is adopted by the next worker.
            PassIncompleteError: a run could not be served; the next pass tries again.
        """
        self._is_single_pass = True
        await self._rounds.unless_stopped(self._check_in())
        if not self._stop.is_set():
            await self._until_one_ends(self._pass(), self._rounds.repeat("renew", self.renew, self._renew_seconds))
        put_off = [holding.put_off for holding in self.holdings.values() if holding.put_off]
        if not self._passed:
            raise PassIncompleteError("the pass was stopped before its end; the next one goes on")
        if self._given_up:
            raise PassIncompleteError(f"{_runs_were(len(self._given_up))} given up: {self._given_up[0]}")
        if put_off:
            raise PassIncompleteError(f"{_runs_were(len(put_off))} put off to the next pass: {put_off[0]}")
        problem = self._readiness.fault("validate")
        if problem is not None:
            raise PassIncompleteError(f"datasets are put off to the next pass: {problem}")

    async def _pass(self) -> None:
        if self.services.settings.validate_datasets:
            # First, while no lease runs; and what becomes ready may be trained in this same pass.
            # Runs that are under way need this pass more than datasets do.
            await self._rounds.once("validate", self._validator.round)
        look = partial(self._rounds.once, "endpoint", self._endpoints.round)
        for part in (self._adopt, look, self._settle_round, self._claim, self._settle_round, self._reconciler.round):
            if self._stop.is_set():
                return
            await part()
        self._passed = not self._stop.is_set()

    async def _settle_round(self) -> None:
        await self.renew()
        # What began after a stop would be waited for by nobody.
        if not self._stop.is_set():
            await self._round(until_settled=True)

    @property
    def _renew_seconds(self) -> float:
        settings = self.services.settings
        return min(settings.poll_seconds, settings.lease_seconds / 3)

    async def _until_one_ends(self, *work: Coroutine[Any, Any, None]) -> None:
        """Do all of this side by side until the first of it ends or `stop` is called; then end in good order."""
        tasks = [asyncio.create_task(each) for each in work]
        stopping = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            self._stop.set()
            stopping.cancel()
            await self._end(tasks)

    async def _end(self, loops: list[asyncio.Task[None]]) -> None:
        work = [task for task in self._tasks.values() if not task.done()]
        tasks = [*loops, *work, *self._leaving]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_GRACE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        crash_point("worker.release.before")
        try:
            released = await asyncio.wait_for(self.services.queue.release(), timeout=_RELEASE_SECONDS)
            log.info("worker stopped", released=released)
        except (ServiceError, TimeoutError) as error:
            log.warning("leases not released; they run out by themselves", problem=str(error))
        crash_point("worker.release.after")

    async def _check_in(self) -> None:
        """See that the database speaks this worker's version, and tell it the terms."""
        await self.services.queue.check_schema()
        if await self.services.queue.publish_terms(self.services.terms.model_dump(mode="json")):
            log.info("terms of estimates written")
        self._rounds.well("start")
        await self.report()

    async def _wait_for_schema(self) -> None:
        """Wait until the database answers with a schema that this worker knows.

        Raises:
            SchemaMismatchError: it answers with another.
        """
        while not self._stop.is_set():
            try:
                await self._check_in()
            except SchemaMissingError as error:
                self._rounds.note("start", error)
            except SchemaMismatchError:
                raise
            except ServiceError as error:
                self._rounds.note("start", error)
            else:
                return
            await self._rounds.pause(self.services.settings.poll_seconds)

    # ── the rounds ──────────────────────────────────────────────────────────────────────────────────

    async def claim(self) -> None:
        """Adopt what other workers left, then claim what is queued."""
        await self._adopt()
        await self._claim()

    async def _adopt(self) -> None:
        asked_at = self.services.clock()
        adopted = await self.services.queue.adopt(_MAX_ADOPTED)
        if adopted:
            crash_point("worker.adopt.after")
        ADOPTED.inc(len(adopted))
        self._take(adopted, asked_at, "adopted")

    async def _claim(self) -> None:
        settings = self.services.settings
        free = settings.slots - len(self.holdings)
        if free <= 0 or self._stop.is_set():
            return
        crash_point("worker.claim.before")
        asked_at = self.services.clock()
        claimed = await self.services.queue.claim(free, settings.max_per_user)
        if claimed:
            crash_point("worker.claim.after")
        CLAIMED.inc(len(claimed))
        self._take(claimed, asked_at, "claimed")

    def _take(self, assignments: list[Assignment], asked_at: float, how: str) -> None:
        for assignment in assignments:
            run = assignment.run
            former = self.holdings.get(run.id)
            if former is not None:
                # Its lease ran out, and the adoption gave this same worker a new one.
                self._forget(former)
            self.holdings[run.id] = HeldRun.take(self.services, assignment, asked_at=asked_at)
            log.info(how, run_id=str(run.id), job_id=str(run.job_id), attempt=run.attempt, status=run.status)
        HELD_RUNS.set(len(self.holdings))

    async def renew(self) -> None:
        """Renew every lease in one call, and take in what changed beside them."""
        held = dict(self.holdings)
        if not held:
            return
        asked_at = self.services.clock()
        leases = [(run_id, holding.assignment.run.lease_token) for run_id, holding in held.items()]
        for news in await self.services.queue.renew(leases):
            holding = held[news.run_id]
            if self.holdings.get(news.run_id) is not holding or holding.settled_as is not None:
                continue
            if news.settled_as:
                apply(holding, Settled(news.settled_as))
                self._forget(holding)
                continue
            if not news.held:
                self._drop(holding, "lease lost")
                continue
            apply(holding, Renewed(news, asked_at))

    async def poll(self) -> None:
        """Look at every held run, side by side, and write all progress in one call."""
        with CYCLE_SECONDS.time():
            await self._round(until_settled=False)

    async def _round(self, *, until_settled: bool) -> None:
        for holding in list(self.holdings.values()):
            if not self._is_at_work(holding):
                self._tasks[holding] = asyncio.create_task(self._advance(holding), name=f"run {holding.run_id}")
        tasks = [self._tasks[holding] for holding in self.holdings.values() if holding in self._tasks]
        if tasks:
            # A long preflight or verification goes on in its task; the others' progress is not kept waiting.
            patience = None if until_settled else self.services.settings.poll_seconds
            await asyncio.wait(tasks, timeout=patience)
        self._readiness.note_runs([holding.put_off for holding in self.holdings.values()])
        await self._send_reports()

    def _is_at_work(self, holding: HeldRun) -> bool:
        task = self._tasks.get(holding)
        return task is not None and not task.done()

    async def _advance(self, holding: HeldRun) -> None:
        run_id = str(holding.assignment.run.id)
        try:
            apply(holding, CycleBegun())
            await advance(holding)
            apply(holding, CycleDone())
            self._over(run_id)
        except LeaseLostError as error:
            self._drop(holding, str(error))
        except ServiceError as error:
            FAULTS_SEEN.labels(error.service).inc()
            apply(holding, CyclePutOff(str(error)))
            if self.services.repeats.is_due((run_id, "work"), str(error)):
                log.warning("put off to the next cycle", run_id=run_id, problem=str(error))
            self._note_unsettled(holding, str(error))
        except Exception as error:
            apply(holding, CycleFailed())
            if self.services.repeats.is_due((run_id, "work"), place_of(error)):
                log.exception("work on a run failed", run_id=run_id)
            self._note_unsettled(holding, "the work on it failed; see the log")
            if holding.faults_in_a_row >= _FAULTS_BEFORE_GIVING_UP:
                apply(holding, StopDecided(WORKER_FAULT))
        if holding.settled_as is not None:
            self._readiness.settled()
            self._forget(holding)

    def _over(self, run_id: str) -> None:
        times = self.services.repeats.clear((run_id, "work"))
        if times > 1:
            log.info("fault over", run_id=run_id, times=times)

    def _note_unsettled(self, holding: HeldRun, problem: str) -> None:
        if holding.is_settling:
            self._readiness.settling_failed(holding.assignment.run.id, problem)

    async def _send_reports(self) -> None:
        reporting = [h for h in self.holdings.values() if h.report is not None]
        trusted = [h for h in reporting if self.services.clock() < h.trusted_until]
        reports: list[dict[str, Any]] = [h.report for h in trusted if h.report is not None]
        for holding in reporting:
            apply(holding, Reported(None))
        if not reports:
            return
        crash_point("worker.progress.before")
        applied = await self.services.queue.record_progress(reports)
        crash_point("worker.progress.after")
        for holding in trusted:
            run_id = holding.assignment.run.id
            if not applied.get(run_id, False) and not self._is_at_work(holding):
                # Work that goes on may have settled the run just now; the next renewal tells.
                self._drop(holding, "progress refused")

    def _drop(self, holding: HeldRun, reason: str) -> None:
        LEASES_LOST.inc()
        self._given_up.append(reason)
        log.warning("run given up", run_id=str(holding.assignment.run.id), reason=reason)
        task = self._forget(holding)
        if task is not None:
            # Nothing that it does counts any more, and what it reads takes a place that others wait for.
            task.cancel()

    def _forget(self, holding: HeldRun) -> asyncio.Task[None] | None:
        """Hold the run no more; the work on it that still goes on, if any, other than the caller's own."""
        run_id, task = holding.assignment.run.id, self._tasks.pop(holding, None)
        if task is None or task.done() or task is asyncio.current_task():
            task = None
        else:
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        # An adoption may already have put a newer holding in its place.
        if self.holdings.get(run_id) is holding:
            del self.holdings[run_id]
            self._readiness.forget(run_id)
            self._over(str(run_id))
        HELD_RUNS.set(len(self.holdings))
        return task

    async def report(self) -> None:
        """Leave a sign of life, so that a queue that nobody serves is seen to be one."""
        settings, problem = self.services.settings, self._readiness.problem
        await self.services.queue.report_worker(
            {
                "version": version("lora-worker"),
                "running_seconds": self.services.clock() - self._started_at,
                "slots": settings.slots,
                "held": len(self.holdings),
                "max_per_user": settings.max_per_user,
                "problem": None if problem is None else redact(problem)[:_MAX_PROBLEM_CHARACTERS],
                "single_pass": self._is_single_pass,
            }
        )

    async def watch(self) -> None:
        """Look at queue and schema once a minute, for operators."""
        await self.services.queue.check_schema()
        health = await self.services.queue.health()
        QUEUE_DEPTH.set(health["queued"])
        OLDEST_WAIT_SECONDS.set(health["oldest_wait_seconds"] or 0)
