"""A run that this worker holds under a lease: all that it knows of it, and what can be read from that.

Nothing here changes a held run. What happens to one is an event (`events`), and `applying` alone writes it down.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import structlog

from lora_contract.protocol import Progress
from lora_worker.database.answers import PlaceRow
from lora_worker.database.rows import Assignment, Lease, News
from lora_worker.errors import LeaseLostError
from lora_worker.launchers.base import LaunchRef, Observation
from lora_worker.launchers.endpoints import EndpointView
from lora_worker.money.billing import Measured, Rate, asked_gpu
from lora_worker.money.places import price_at
from lora_worker.observability.actions import Action
from lora_worker.runs.outcomes.failures import NO_GPU_THERE, Failure, unreadable
from lora_worker.runs.state.silence import Silence
from lora_worker.runs.state.whereabouts import Whereabouts
from lora_worker.services import Services

log = structlog.get_logger(__name__)

_SUSPECT_HANDLINGS = 2
"""One worker may have ended for another run's sake. The database counts anew once the run is launched."""

_REMEDY = (
    "its adapter can't be published before LORA_WORKER_PREVIOUS_TOKEN_SECRETS names the former secret "
    "(the former SUPABASE_SERVICE_ROLE_KEY, where LORA_WORKER_TOKEN_SECRET was not set)"
)


@dataclass(eq=False)
class HeldRun:
    """One held run. All moments are seconds on the lease clock (`Services.clock`)."""

    services: Services
    assignment: Assignment
    launched_at: float
    trusted_until: float
    """Until when this worker may write for the run. It comes before the lease ends in the database."""
    silence: Silence
    whereabouts: Whereabouts
    news: News
    token: str | None = field(repr=False)
    """The token that the run's trainer holds; None where it was made with a secret that this worker does not have."""
    progress: Progress | None = None
    """The furthest progress that was heard of."""
    observation: Observation | None = None
    """The last look at the launch."""
    container: str | None = None
    """The launcher's id of the container that had the launch, as far as any look said one."""
    stopping: Failure | None = None
    """Why the run is being stopped; None while it is not, and where its user cancelled it."""
    stop_asked_at: float | None = None
    """When the launcher was first asked to stop the run."""
    endpoint: EndpointView = field(default_factory=EndpointView)
    """The state of the run's endpoint when the daemon looked last."""
    places_seen: tuple[PlaceRow, ...] | None = None
    """What the database said of all places for this run at the beginning of this cycle; None where it was not asked."""
    measured_seconds: float = 0.0
    """The most GPU seconds that the launcher has measured: once it deletes a job, it can't be asked any more."""
    put_off: str | None = None
    """Why this cycle's launch, upload grant or other work was left for the next cycle."""
    problem: str | None = None
    """Why the run can't go on, for the operator."""
    doubtful_endpoint: str | None = None
    """Where a launch of the run may live whose id is not known."""
    refused_at: Mapping[str, float] = field(default_factory=dict)
    """When the launcher of a place did not accept the run, by the place's name."""
    declined_by: Set[str] = frozenset()
    """The places whose launcher can't take the run's request, by name: none of them will take it another time."""
    launch_not_before: float = 0.0
    launch_tries: int = 0
    is_settling: bool = False
    """Whether the run has ended and this cycle writes its end."""
    end_summary: str = ""
    """How the run ended, in words for the operator; empty before."""
    container_log: tuple[str, ...] = ()
    """The end of the container's log, as the trainer sent it with its result: words of a container."""
    is_log_kept: bool = False
    """Whether nothing is left to do for the container's log."""
    fetch_tries: int = 0
    """How often an earlier trainer's files were fetched."""
    settled_as: str | None = None
    """The job's status after the run was settled; None before."""
    report: dict[str, Any] | None = None
    """The entry for the next `record_progress`, which the daemon sends with those of all other runs."""
    faults_in_a_row: int = 0
    """How many cycles in a row ended with an unexpected exception."""
    handlings: Mapping[str, bool] = field(default_factory=dict)
    """For each phase that this worker has counted with `begin_handling`: whether it may go on with it."""

    @classmethod
    def take(cls, services: Services, assignment: Assignment, *, asked_at: float) -> HeldRun:
        """The held run of an assignment; the call that brought it began at `asked_at` on the lease clock."""
        run = assignment.run
        token = services.tokens.of(run.id, run.token_sha256)
        if token is None:
            log.error("a run's token was made with another secret", action=Action.RUN_TOKEN_UNKNOWN, remedy=_REMEDY)
        # A worker that died may have sent the launch, and a lost answer leaves the same doubt: the trainer may still
        # check in by itself, so it gets time for that before the run is launched again.
        in_doubt = run.posted_seconds_ago is not None and run.external_job_id is None
        posted_seconds_ago = run.posted_seconds_ago or 0.0
        return cls(
            services,
            assignment,
            launched_at=asked_at - posted_seconds_ago,
            trusted_until=asked_at + services.settings.lease_seconds,
            silence=Silence(asked_at),
            whereabouts=Whereabouts.of(services.places, run.endpoints),
            news=_first_news(assignment),
            stopping=unreadable(assignment.unreadable) if assignment.unreadable else _left(assignment),
            doubtful_endpoint=run.endpoint if in_doubt else None,
            token=token,
            launch_not_before=asked_at + services.settings.doubt_seconds - posted_seconds_ago if in_doubt else 0.0,
            launch_tries=run.launches if in_doubt else 0,
        )

    @property
    def run_id(self) -> str:
        """The run's id as it stands in logs."""
        return str(self.assignment.run.id)

    def require_lease(self) -> None:
        """Check that this worker may still write for the run; to be called right before each write.

        Raises:
            LeaseLostError: the lease has run out by this worker's own clock.
        """
        if self.services.clock() >= self.trusted_until:
            raise LeaseLostError("the lease ran out before it was renewed")

    @property
    def is_suspect(self) -> bool:
        """Whether several workers began to handle this run and ended before they were done: it may have ended them."""
        return self.assignment.run.handlings >= _SUSPECT_HANDLINGS

    @property
    def is_to_stop(self) -> bool:
        """Whether the run is to be stopped: its user cancelled it, or the worker decided so."""
        return self.news.cancel_requested or self.stopping is not None

    @property
    def has_checked_in(self) -> bool:
        """Whether a trainer of the run has checked in."""
        return self.news.checked_in_at is not None

    @property
    def launch_ref(self) -> LaunchRef:
        """The launch by which the run is known, and the endpoint where it is."""
        return self.whereabouts.ref(self.news.external_job_id or "", self.news.endpoint)

    @property
    def launch_age_seconds(self) -> float:
        """Seconds since the run was first sent to a launcher; since it was taken, where it was not sent before."""
        return self.services.clock() - self.launched_at

    @property
    def needs_proof(self) -> bool:
        """Whether the trainer must try the finished adapter on its base: launches of an earlier worker did not say."""
        return bool((self.assignment.run.launched_with or {}).get("needs_proof"))

    @property
    def rate(self) -> Rate:
        """What the run is billed at: the rate of its launch, or the rate that a launch would have now."""
        launched_with, settings, job = self.assignment.run.launched_with, self.services.settings, self.assignment.job
        if launched_with is not None:
            return Rate.model_validate(launched_with)
        prices, place = self.services.prices, self.services.places.default
        price = price_at(place, prices, asked_gpu(job and job.gpu_config))
        price = price or max(prices, key=lambda known: known.price_per_hour)
        return Rate.at(price, gpu_count=place.gpu_count, max_cost=settings.max_cost_per_job)

    def gpu_seconds(self, claimed: float | None = None) -> float:
        """GPU seconds of this run so far; `claimed` is what its result says (`Measured.seconds`)."""
        look = self.observation
        measured = Measured(
            launcher=self.measured_seconds,
            heartbeats=self.news.used_seconds or 0.0,
            wall=self.news.posted_seconds_ago,
            is_final=look is not None and look.ended and look.execution_seconds is not None,
            billed=look.billed_seconds if look is not None and look.ended else None,
        )
        return measured.seconds(claimed, patience=self.services.settings.lost_seconds)

    @property
    def lease(self) -> Lease:
        """What is sent to renew this run's lease."""
        run = self.assignment.run
        has_result = self.news.result is not None
        return Lease(run.id, run.lease_token, self.news.progress_number or 0, has_result=has_result)

    def cost(self, seconds: float, *, fee: float = 0.0) -> float:
        """What the job has cost in USD, with so many GPU seconds of this run and a fee in USD."""
        return self.rate.cost(seconds, spent=self.assignment.run.spent_cost, fee=fee)


def _left(assignment: Assignment) -> Failure | None:
    """That the run was taken from its place by a worker that ended before it was stopped there."""
    return NO_GPU_THERE if assignment.run.withdrawn_at is not None else None


def _first_news(assignment: Assignment) -> News:
    """What an assignment says of what each renewal will tell anew."""
    run, job = assignment.run, assignment.job
    return News(
        run_id=run.id,
        held=True,
        status=run.status,
        cancel_requested=job is None or job.status == "cancelled",
        external_job_id=run.external_job_id,
        endpoint=run.endpoint,
        checked_in_at=run.checked_in_at,
        last_seen_at=run.last_seen_at,
        used_seconds=run.used_seconds,
    )
