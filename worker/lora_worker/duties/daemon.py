"""One worker process: which duties it has, how it goes about them, and how it starts and stops.

`run` repeats every duty of one list in loops side by side; `run_once` goes through the same list once, from top to
bottom.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog

from lora_contract.crash_points import crash_point
from lora_worker.duties.alias_releases import RELEASE_CALLS, AliasReleases
from lora_worker.duties.duty import Duty, RoundResult
from lora_worker.duties.endpoints import EndpointWatch
from lora_worker.duties.faults import Faults, Meaning, meaning_of
from lora_worker.duties.held_runs import HeldRuns
from lora_worker.duties.limits import reading_limit, silence_limit
from lora_worker.duties.operator_watch import OperatorWatch
from lora_worker.duties.owned_launches import OWNED_CALLS, OwnedLaunches
from lora_worker.duties.presence import Presence
from lora_worker.duties.rounds import Rounds
from lora_worker.duties.served_adapters import SERVING_CALLS, ServedAdapters
from lora_worker.duties.strays import STRAY_CALLS, Reconciler
from lora_worker.duties.sweeping import Sweeper
from lora_worker.duties.validation import Validator
from lora_worker.duties.wake_ups import WakeUps
from lora_worker.duties.webhooks import LONGEST_SENDING_SECONDS, WEBHOOK_CALLS, WEBHOOK_SECONDS, Webhooks
from lora_worker.errors import PassIncompleteError, ServiceError
from lora_worker.observability.actions import Action
from lora_worker.observability.liveness import Liveness
from lora_worker.observability.readiness import Readiness
from lora_worker.services import Services

log = structlog.get_logger(__name__)

_WATCH_SECONDS = 60.0
_REPORT_SECONDS = 30.0
"""The database takes a worker for ended that it has not heard of for two minutes."""
_SWEEP_SECONDS = 900.0
_OWNED_SECONDS = 60.0
_RELEASE_ALIASES_SECONDS = 15.0
_SERVED_SECONDS = 20.0
"""Somebody may be waiting for an alias to be served. Without something to do it is one question to the database."""
_NOTIFY_SECONDS = 60.0
_NOTIFY_CALLS = 4
_STUCK_SECONDS = 300.0
_GRACE_SECONDS = 6.0
"""How long after a stop calls that are under way may take to finish."""
_RELEASE_SECONDS = 2.0
"""How long the release of the leases may take after that, so that the whole exit takes less than ten seconds."""


def _runs_were(count: int) -> str:
    return "1 run was" if count == 1 else f"{count} runs were"


class Daemon:
    """One worker process."""

    def __init__(self, services: Services, *, rng: random.Random | None = None) -> None:
        self.services = services
        settings, faults = services.settings, Faults(services.repeats)
        self._readiness = Readiness(
            services.clock, stuck_seconds=max(_STUCK_SECONDS, 10 * settings.request_timeout_seconds)
        )
        self._liveness = Liveness()
        self._stop = asyncio.Event()
        # These random numbers only keep rounds apart; no secret depends on them.
        self._rounds = Rounds(self._stop, self._readiness, self._liveness, faults, rng or random.Random())  # noqa: S311
        self.runs = HeldRuns(services, self._readiness, faults, is_stopping=self._stop.is_set)
        self._presence = Presence(services, self._readiness, self.runs)
        alive = self._liveness
        self.endpoints = EndpointWatch(services, self.runs.held, beat=partial(alive.beat, "endpoint"))
        self._validator = Validator(
            services, self._stop, beat=partial(alive.beat, "validate"), rest=partial(alive.rest, "validate")
        )
        self._reconciler = Reconciler(services, self._stop, beat=partial(alive.beat, "strays"))
        self._owned = OwnedLaunches(services, beat=partial(alive.beat, "owned"))
        self._sweeper = Sweeper(services)
        self._alias_releases = AliasReleases(services)
        self._served = ServedAdapters(services)
        self._webhooks = Webhooks(services)
        self.wake_ups = WakeUps(services.tokens, self.runs, services.clock)
        self._operators = OperatorWatch(services, self._readiness)

    @property
    def problem(self) -> str | None:
        """Why this worker does not do its work; None while it does (for /readyz)."""
        return self._readiness.problem

    @property
    def hang(self) -> str | None:
        """Which duty hangs; None while all go on (for /healthz)."""
        return self._liveness.problem

    # ── the duties ──────────────────────────────────────────────────────────────────────────────────

    def duties(self, *, is_single_pass: bool = False) -> list[Duty]:
        """All duties, in the order of a single pass, which does some of them twice."""
        settings, runs = self.services.settings, self.runs
        poll_seconds = settings.poll_seconds
        limit = partial(silence_limit, settings)
        validate = Duty(
            "validate", poll_seconds, self._unless_drained(self._validator.run_once),
            limit_seconds=reading_limit(settings), takes_long=True, ends_pass=False,
        )  # fmt: skip
        renew = Duty("renew", min(poll_seconds, settings.lease_seconds / 3), runs.renew, limit(calls=1))
        poll = Duty(
            "poll", poll_seconds, partial(runs.poll, until_settled=is_single_pass),
            limit_seconds=limit(calls=1, more_seconds=poll_seconds),
        )  # fmt: skip
        # Before a run is looked at: one whose launch was never recorded has its id then, and is not launched again.
        owned = Duty("owned", _OWNED_SECONDS, self._owned.run_once, limit(calls=OWNED_CALLS), ends_pass=False)
        return [
            # First, while no lease runs; and a dataset that becomes ready may be trained on in the same pass.
            *([validate] if settings.validate_datasets else []),
            # What other workers left comes before what is queued, since it takes the same slots.
            Duty("adopt", poll_seconds, self._unless_drained(runs.adopt), limit(calls=1), loop="claim"),
            *([owned] if self._owned.places else []),
            # Runs that are under way need this pass more than a look at the endpoint does.
            Duty("endpoint", self.endpoints.interval_seconds, self.endpoints.run_once, limit(calls=2), ends_pass=False),
            renew,
            poll,
            # Now the runs that have ended have left their slots.
            Duty("claim", poll_seconds, self._unless_drained(runs.claim), limit(calls=1), loop="claim"),
            renew,
            poll,
            Duty("strays", poll_seconds, self._reconciler.run_once, limit(calls=STRAY_CALLS)),
            Duty("served", _SERVED_SECONDS, self._served.run_once, limit(calls=SERVING_CALLS), ends_pass=False),
            Duty("sweep", _SWEEP_SECONDS, self._sweeper.run_once, limit(calls=2), ends_pass=False),
            Duty(
                "aliases",
                _RELEASE_ALIASES_SECONDS,
                self._alias_releases.run_once,
                limit(calls=RELEASE_CALLS),
                ends_pass=False,
            ),
            *(
                [
                    Duty(
                        "webhooks",
                        WEBHOOK_SECONDS,
                        self._webhooks.run_once,
                        limit(calls=WEBHOOK_CALLS, more_seconds=LONGEST_SENDING_SECONDS),
                        ends_pass=False,
                    )
                ]
                if self._webhooks.has_endpoints
                else []
            ),
            # Last, since it tells what the others have found out.
            *(
                [Duty("notify", _NOTIFY_SECONDS, self._operators.run_once, limit(calls=_NOTIFY_CALLS), ends_pass=False)]
                if self.services.outbox.is_open
                else []
            ),
            # A pass does what matters of these two when it checks in.
            Duty("watch", _WATCH_SECONDS, self._presence.watch, limit(calls=3), in_pass=False),
            Duty("report", _REPORT_SECONDS, self._presence.report, limit(calls=1), in_pass=False),
        ]

    def _unless_drained(self, take: Callable[[], Awaitable[RoundResult]]) -> Callable[[], Awaitable[RoundResult]]:
        """Return a round that takes new work; of a drained worker it takes none, and ends it after its last run."""

        async def take_unless_drained() -> RoundResult:
            if not self._presence.is_drained:
                return await take()
            # Its last run may still be keeping its container's log.
            if not self.runs.held and not self.runs.unfinished_work:
                self.stop()
            return RoundResult()

        return take_unless_drained

    # ── running and stopping ────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """Begin to stop: nothing new is claimed, and `run` returns when the leases are released."""
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            SchemaMismatchError: the database moved to a version that this worker does not know.
        """
        settings = self.services.settings
        # All tasks of this worker begin in this context, so each line of the log has the id.
        structlog.contextvars.bind_contextvars(worker_id=settings.name)
        await self._rounds.unless_stopped(self._wait_for_schema())
        if self._stop.is_set():
            log.info("stopped before the database answered", action=Action.WORKER_STOPPED_EARLY)
            return
        log.info(
            "worker started", action=Action.WORKER_STARTED, version=version("lora-worker"),
            project=settings.supabase_url, endpoint=self.services.launcher.endpoint, slots=settings.slots,
        )  # fmt: skip
        loops: dict[str, list[Duty]] = {}
        for duty in dict.fromkeys(self.duties()):
            loops.setdefault(duty.loop_name, []).append(duty)
        await self._until_one_ends(*map(self._rounds.repeat, loops.values()), self._poll_when_told())

    async def _poll_when_told(self) -> None:
        """Poll runs of which their launcher tells, beside the polls in their turn."""
        settings = self.services.settings
        limit = silence_limit(settings, calls=1, more_seconds=settings.poll_seconds)

        async def once(poll: Callable[[], Awaitable[RoundResult]]) -> None:
            await self._rounds.once(Duty("wake", settings.poll_seconds, poll, limit))

        await self._rounds.unless_stopped(self.wake_ups.repeat(once, self._rounds.pause))

    async def run_once(self) -> None:
        """Do one full pass: adopt, poll, settle, claim, launch, release.

        Raises:
            ServiceError: the database did not answer; the next worker adopts what was held.
            PassIncompleteError: some of the work is left; the next pass tries again.
        """
        structlog.contextvars.bind_contextvars(worker_id=self.services.settings.name)
        await self._rounds.unless_stopped(self._check_in(is_single_pass=True))
        results: dict[str, RoundResult] = {}
        duties = [duty for duty in self.duties(is_single_pass=True) if duty.in_pass]
        if not self._stop.is_set():
            renewing = [duty for duty in dict.fromkeys(duties) if duty.name == "renew"]
            await self._until_one_ends(self._pass(duties, results), self._rounds.repeat(renewing))
        if any(duty.name not in results for duty in duties):
            raise PassIncompleteError("the pass was stopped before its end; the next one goes on")
        self._require_whole(results)
        log.info("pass done", action=Action.PASS_DONE, **{name: result.done for name, result in results.items()})

    async def _pass(self, duties: list[Duty], results: dict[str, RoundResult]) -> None:
        """Do each duty in turn until the stop, and note what the latest round of each came to."""
        for duty in duties:
            result = await (duty.run_once() if duty.ends_pass else self._rounds.once(duty))
            if self._stop.is_set():
                return
            results[duty.name] = result

    def _require_whole(self, results: dict[str, RoundResult]) -> None:
        given_up, put_off = self.runs.given_up, results["poll"].put_off
        if given_up:
            raise PassIncompleteError(f"{_runs_were(len(given_up))} given up: {given_up[0]}")
        if put_off:
            raise PassIncompleteError(f"{_runs_were(len(put_off))} put off to the next pass: {put_off[0]}")
        unreachable = results["endpoint"].failed or next(iter(results["endpoint"].put_off), None)
        if unreachable:
            # A refused key, say: with nothing queued, no run would tell of it.
            raise PassIncompleteError(f"no training can be launched: {unreachable}")
        problem = results["validate"].failed if "validate" in results else None
        if problem is not None:
            raise PassIncompleteError(f"datasets are put off to the next pass: {problem}")

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
        """Let calls that are under way finish for a while, cancel the rest, and release the leases."""
        tasks = [*loops, *self.runs.unfinished_work]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_GRACE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        crash_point("worker.release.before")
        try:
            released = await asyncio.wait_for(self.services.queue.release(), timeout=_RELEASE_SECONDS)
            log.info("worker stopped", action=Action.WORKER_STOPPED, released=released)
        except (ServiceError, TimeoutError) as error:
            log.warning(
                "leases not released; they run out by themselves", action=Action.LEASES_NOT_RELEASED, problem=str(error)
            )
        crash_point("worker.release.after")

    # ── starting ────────────────────────────────────────────────────────────────────────────────────

    async def _check_in(self, *, is_single_pass: bool = False) -> None:
        """See that the database speaks this worker's version, and write down this worker and its terms."""
        await self.services.queue.check_schema()
        if await self.services.queue.publish_terms(self.services.terms.model_dump(mode="json")):
            log.info("terms of estimates written", action=Action.TERMS_WRITTEN)
        self._rounds.went_well("start")
        await self._presence.report(is_single_pass=is_single_pass)

    async def _wait_for_schema(self) -> None:
        """Wait until the database answers with a schema that this worker knows.

        Raises:
            SchemaMismatchError: it answers with another.
        """
        settings = self.services.settings
        while not self._stop.is_set():
            self._liveness.expect("start", "the start", silence_limit(settings, calls=4) + settings.poll_seconds)
            try:
                await self._check_in()
            except ServiceError as error:
                if meaning_of(error) is Meaning.END:
                    raise
                self._rounds.failed("start", error)
                await self._operators.look_at_worker()
                await self._rounds.pause(settings.poll_seconds)
            else:
                break
        self._liveness.forget("start")
