"""A run that this worker holds under a lease: what is known of it, and what comes next for it.

`advance` is called once a poll cycle. It observes and acts through the services; decisions are in
`outcome`. It writes progress only by leaving a report, which the daemon sends with all the others.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.protocol import Progress, Result, Summary
from lora_worker.database.rows import Assignment, News
from lora_worker.errors import LeaseLostError
from lora_worker.launchers.base import LaunchRef, LaunchState, Observation
from lora_worker.launchers.endpoints import EndpointView
from lora_worker.money.billing import Measured, Rate, contradiction, gpu_of
from lora_worker.runs.failures import (
    ARTIFACT_MISSING,
    NEVER_READY,
    OVER_BUDGET,
    OVER_TIME,
    WORKER_FAULT,
    Failure,
    unreadable,
)
from lora_worker.runs.granting import answer
from lora_worker.runs.launching import launch
from lora_worker.runs.progress_entries import make_report, progress_report
from lora_worker.runs.report_rows import latest
from lora_worker.runs.results import parse_progress, parse_result
from lora_worker.runs.settling import Ending, settle
from lora_worker.runs.silence import Silence
from lora_worker.runs.verdicts import AwaitManifest, Finish, Stop, judge
from lora_worker.runs.whereabouts import Whereabouts, left_alone
from lora_worker.services import Services
from lora_worker.storage.places import Places
from lora_worker.storage.publication import has_manifest

log = structlog.get_logger(__name__)

_SUSPECT_HANDLINGS = 2
"""The first may have been a neighbour's fault; the count begins anew when the launch is known."""

_REMEDY = (
    "its adapter can't be published before LORA_WORKER_PREVIOUS_TOKEN_SECRETS names the former secret "
    "(the former SUPABASE_SERVICE_ROLE_KEY, where LORA_WORKER_TOKEN_SECRET was not set)"
)

_WATCH_MARGIN_SECONDS = 180.0
"""The trainer ends itself first, then the launcher's policy; the worker's own watch comes last."""


@dataclass
class Holding:
    """One held run. Moments are on the lease clock; `trusted_until` comes before the database's lease ends."""

    services: Services
    assignment: Assignment
    launched_at: float
    trusted_until: float
    silence: Silence
    whereabouts: Whereabouts
    news: News
    token: str | None = field(repr=False)
    """What the run's trainer holds; None where it was made with a secret that this worker does not have."""
    progress: Progress | None = None
    observation: Observation | None = None
    stopping: Failure | None = None
    stop_asked_at: float | None = None
    endpoint: EndpointView = field(default_factory=EndpointView)
    """By the daemon's last look at it."""
    measured_seconds: float = 0.0
    """GPU seconds by the launcher's longest measure: it forgets them with the job."""
    put_off: str | None = None
    """Why the last launch was not accepted, or an upload not granted."""
    problem: str | None = None
    """What keeps the run from going on, for the operator."""
    launch_not_before: float = 0.0
    launch_tries: int = 0
    is_settling: bool = False
    """Whether the run has ended and its end is not written yet."""
    foreign_tries: int = 0
    """How often an earlier trainer's files were fetched."""
    settled_as: str | None = None
    report: dict[str, Any] | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    faults_in_a_row: int = 0
    handlings_begun: set[str] = field(default_factory=set)
    _contradicted: bool = False

    @classmethod
    def take(cls, services: Services, assignment: Assignment, *, asked_at: float) -> Holding:
        """A holding for an assignment whose call began at `asked_at` on the lease clock."""
        run, settings = assignment.run, services.settings
        holding = cls(
            services,
            assignment,
            launched_at=asked_at - (run.posted_seconds_ago or 0.0),
            trusted_until=asked_at + settings.lease_seconds,
            silence=Silence(asked_at),
            whereabouts=Whereabouts(services.launcher, run.endpoints),
            news=News(
                run_id=run.id,
                held=True,
                status=run.status,
                cancel_requested=assignment.job is None or assignment.job.status == "cancelled",
                external_job_id=run.external_job_id,
                endpoint=run.endpoint,
                checked_in_at=run.checked_in_at,
                last_seen_at=run.last_seen_at,
                used_seconds=run.used_seconds,
            ),
            stopping=unreadable(assignment.unreadable) if assignment.unreadable else None,
            token=services.tokens.of(run.id, run.token_sha256),
        )
        if holding.token is None:
            log.error("a run's token was made with another secret", run_id=str(run.id), remedy=_REMEDY)
        if run.posted_seconds_ago is not None and run.external_job_id is None:
            # Sent by a worker that died, or unanswered: it may still check in by itself.
            holding.launch_not_before = asked_at + settings.doubt_seconds - run.posted_seconds_ago
            holding.launch_tries = run.launches
        return holding

    def take_news(self, news: News, *, asked_at: float) -> None:
        """Take what a renewal said that began at `asked_at` on the lease clock."""
        # The window starts when the request started: the database counts from later on.
        self.trusted_until = asked_at + self.services.settings.lease_seconds
        known = news.external_job_id or self.news.external_job_id
        self.news = news.model_copy(update={"external_job_id": known})

    def require_lease(self) -> None:
        """Stop here unless this worker may still write for the run.

        Raises:
            LeaseLostError: by its own clock the lease has run out.
        """
        if self.services.clock() >= self.trusted_until:
            raise LeaseLostError("the lease ran out before it was renewed")

    @property
    def is_suspect(self) -> bool:
        """Whether several workers began on this run and did not finish: it may be what ended them."""
        return self.assignment.run.handlings >= _SUSPECT_HANDLINGS

    async def begin_handling(self, phase: str) -> bool:
        """Count that this worker begins a phase that might end it; False when too many have.

        Raises:
            LeaseLostError: the lease is lost.
        """
        if phase not in self.handlings_begun:
            run = self.assignment.run
            handlings = await self.services.queue.begin_handling(run.id, run.lease_token)
            if handlings is None:
                raise LeaseLostError(f"the lease was lost before {phase}")
            self.handlings_begun.add(phase)
            return handlings <= self.services.settings.max_handlings
        return True

    @property
    def rate(self) -> Rate:
        """What the run is billed at: as it was launched, or as it would be."""
        launched_with, settings, job = self.assignment.run.launched_with, self.services.settings, self.assignment.job
        if launched_with is not None:
            return Rate.model_validate(launched_with)
        prices = self.services.prices
        price = gpu_of(job and job.gpu_config, prices, endpoint_gpu_type=settings.endpoint_gpu_type)
        price = price or max(prices, key=lambda known: known.price_per_hour)
        return Rate.at(price, gpu_count=settings.endpoint_gpu_count, max_cost=settings.max_cost_per_job)

    def gpu_seconds(self, claimed: float | None = None) -> float:
        """GPU seconds of this run so far; `claimed` is what its result says (`Measured.seconds`)."""
        look = self.observation
        measured = Measured(
            launcher=self.measured_seconds,
            heartbeats=self.news.used_seconds or 0.0,
            wall=self.news.posted_seconds_ago,
            is_final=look is not None and look.ended and look.execution_seconds is not None,
        )
        return measured.seconds(claimed, patience=self.services.settings.lost_seconds)

    def cost(self, seconds: float, *, fee: float = 0.0) -> float:
        """What the job has cost with so many seconds of this run, in USD."""
        return self.rate.cost(seconds, spent=self.assignment.run.spent_cost, fee=fee)

    @property
    def _is_to_stop(self) -> bool:
        return self.news.cancel_requested or self.stopping is not None

    async def advance(self) -> None:
        """Do what comes next for the run.

        Raises:
            ServiceError: something did not answer; the next cycle tries again.
            LeaseLostError: the run is another worker's now.
        """
        self.require_lease()
        if self.news.upload_request is not None and not self._is_to_stop:
            await answer(self, self.news.upload_request)
        foreign = left_alone(self.assignment.run.launcher, self.services.launcher)
        if foreign:
            self._say_problem(foreign)
            self.report = make_report(self, {})
            return
        if self._is_to_stop:
            await self._stop()
        elif self.news.external_job_id is None:
            if self.services.clock() >= self.launch_not_before:
                await launch(self)
        else:
            await self._look(self.news.external_job_id)

    def _say_problem(self, problem: str | None, event: str = "a run can't go on") -> None:
        """Tell the operator what keeps the run from going on; None: nothing does."""
        run_id = str(self.assignment.run.id)
        self.problem = problem
        if problem is None:
            self.services.repeats.clear((run_id, "problem"))
        elif self.services.repeats.is_due((run_id, "problem"), problem):
            log.error(event, run_id=run_id, problem=problem)

    async def _observe(self, external_job_id: str) -> Observation:
        """Look at the launch, and keep what it says of time and progress."""
        observation = self.observation = await self.whereabouts.observe(
            external_job_id, self.news.endpoint, age_seconds=self._launch_age_seconds
        )
        unseen = self.whereabouts.unseen(external_job_id, self.news.endpoint, observation)
        self._say_problem(unseen, "status unknown")
        self.measured_seconds = max(self.measured_seconds, observation.execution_seconds or 0.0)
        if observation.state is LaunchState.RUNNING:
            progress = parse_progress(observation.output, run_id=str(self.assignment.run.id))
            if progress:
                self.progress = latest(self.progress, progress)
                self.compare_claims(self.progress)
        return observation

    async def _look(self, external_job_id: str) -> None:
        observation = await self._observe(external_job_id)
        run_id = str(self.assignment.run.id)
        verdict = judge(
            observation,
            run_id=run_id,
            owned_elsewhere=self.news.checked_in_at is not None and self.news.external_job_id != external_job_id,
            silent_seconds=self.silence.listen(observation, self.news.last_seen_at, self.services.clock()),
            checked_in=self.news.checked_in_at is not None,
            lost_seconds=self.services.settings.lost_seconds,
            longest_seconds=self.services.settings.max_run_seconds
            - self.assignment.run.spent_seconds
            + _WATCH_MARGIN_SECONDS,
        )
        if isinstance(verdict, Finish):
            if not await self._is_owner(external_job_id):
                return
            await self.finish(Ending(verdict.failure, result=verdict.result, legacy=verdict.legacy, look=True))
            return
        if observation.state is LaunchState.MISSING and self.services.repeats.is_due((run_id, "missing"), "missing"):
            log.warning("RunPod has forgotten the launch", run_id=run_id, reason=observation.reason)
        if isinstance(verdict, AwaitManifest) and await self._has_manifest():
            await self.finish(Ending(ARTIFACT_MISSING, look=True))
            return
        if isinstance(verdict, Stop):
            log.warning("the GPU is silent", run_id=run_id, external_job_id=external_job_id)
            self.stopping = verdict.failure
        self._watch_limits(observation)
        self.report = progress_report(self)

    async def _is_owner(self, external_job_id: str) -> bool:
        """Whether the run is still this launch's, by the database's latest word.

        Another launch of it may have checked in since the last renewal, and a worker that knew it may have
        cancelled this one as a stray.
        """
        run, asked_at = self.assignment.run, self.services.clock()
        (news,) = await self.services.queue.renew([(run.id, run.lease_token)])
        if news.settled_as:
            # By this worker, in an earlier cycle: the answer was lost on its way.
            self.settled_as = news.settled_as
            return False
        if not news.held:
            raise LeaseLostError("the lease was lost before the end")
        self.take_news(news, asked_at=asked_at)
        return self.news.external_job_id == external_job_id

    async def _has_manifest(self) -> bool:
        run, services = self.assignment.run, self.services
        return self.assignment.job is not None and await has_manifest(
            services.storage, services.settings.artifacts_bucket, Places.of(run)
        )

    @property
    def launch_ref(self) -> LaunchRef:
        """The launch that the run is known by, where it is."""
        return self.whereabouts.ref(self.news.external_job_id or "", self.news.endpoint)

    @property
    def waits_for_gpu(self) -> bool:
        """Whether it was launched, or is going to be, and no trainer of it was heard of yet."""
        return self.news.checked_in_at is None

    @property
    def _launch_age_seconds(self) -> float:
        return self.services.clock() - self.launched_at

    def _watch_limits(self, observation: Observation) -> None:
        settings = self.services.settings
        if self.waits_for_gpu and self.endpoint.keeps_waiting(
            observation.state, launch_age_seconds=self._launch_age_seconds, limit_seconds=settings.max_start_seconds
        ):
            self.stopping = NEVER_READY
            log.error("the endpoint's workers never get ready", run_id=str(self.assignment.run.id))
            return
        run, seconds, rate = self.assignment.run, self.gpu_seconds(), self.rate
        if run.spent_seconds + seconds > settings.max_run_seconds + _WATCH_MARGIN_SECONDS:
            self.stopping = OVER_TIME
        elif run.spent_cost + rate.hourly * (seconds - _WATCH_MARGIN_SECONDS) / 3600 > rate.max_cost:
            self.stopping = OVER_BUDGET

    def compare_claims(self, claims: Progress | Summary) -> None:
        """Log, once, what the container says of its GPUs where the bill says something else."""
        problem = contradiction(self.rate, claims.gpu_type, claims.gpu_count, self.services.prices)
        if problem and not self._contradicted:
            log.warning(
                "the trainer contradicts the bill; see LORA_WORKER_ENDPOINT_GPU_TYPE and …_GPU_COUNT",
                run_id=str(self.assignment.run.id),
                problem=problem,
            )
            self._contradicted = True

    async def _stop(self) -> None:
        """Stop the GPU, see that it has stopped, then settle: as cancelled, or with why it was stopped."""
        external_job_id = self.news.external_job_id
        if external_job_id is None:
            # Never accepted, as far as is known. A launch in doubt is refused when it checks in.
            await self.finish(Ending(self.stopping))
            return
        first = self.stop_asked_at is None
        if first:
            # Its progress goes with it, and an adopter has not seen any yet.
            await self._observe(external_job_id)
        crash_point("worker.cancel.before")
        self.require_lease()
        self.stop_asked_at = self.stop_asked_at or self.services.clock()
        asked = await self.whereabouts.cancel(external_job_id, self.news.endpoint)
        crash_point("worker.cancel.after")
        if first:
            log.info("stopping the GPU", run_id=str(self.assignment.run.id), asked=asked)
        observation = await self._observe(external_job_id)
        if observation.ended or observation.state is LaunchState.MISSING:
            # Another launch of the run is stopped next, now that it is known. And the bill takes the last heartbeat.
            if await self._is_owner(external_job_id):
                # A trainer that heard of it first has ended by itself, and tells how far it came.
                found = parse_result(observation.output, run_id=str(self.assignment.run.id))
                result = found if isinstance(found, Result) else None
                # What this worker can't handle is not looked at once more.
                look = self.stopping not in {None, WORKER_FAULT}
                await self.finish(Ending(self.stopping, result=result, look=look))
            return
        overdue = self.services.clock() - self.stop_asked_at > self.services.settings.cancel_seconds
        if overdue and observation.state is not LaunchState.UNKNOWN:
            self._say_problem(f"{external_job_id} goes on; look at the launcher's console", "the GPU does not stop")
        self.report = make_report(self, {})

    async def finish(self, ending: Ending) -> None:
        """Settle the run; afterwards `settled_as` holds the job's status."""
        self.is_settling = True
        self.settled_as = await settle(self, ending)
        self.report = None
