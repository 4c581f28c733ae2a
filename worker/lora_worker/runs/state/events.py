"""What can happen to a held run.

Launching, granting, observing and settling return these values; `applying.apply` writes them into the held run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_contract.protocol import Progress, Result
from lora_worker.database.answers import PlaceRow
from lora_worker.database.rows import Assignment, News
from lora_worker.launchers.base import Observation
from lora_worker.launchers.endpoints import EndpointView
from lora_worker.runs.outcomes.failures import Failure
from lora_worker.runs.outcomes.results import LegacyResult
from lora_worker.runs.state.silence import Silence
from lora_worker.runs.state.whereabouts import Whereabouts

# ── a cycle ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CycleBegun:
    """A new cycle of work on the run begins."""


@dataclass(frozen=True, slots=True)
class CycleDone:
    """The cycle ended without an exception."""


@dataclass(frozen=True, slots=True)
class CyclePutOff:
    """A service did not do its part, so the rest of the work waits for the next cycle."""

    problem: str


@dataclass(frozen=True, slots=True)
class CycleFailed:
    """The cycle ended with an exception that nobody expected."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease was renewed; the call began at `asked_at` on the lease clock."""

    news: News
    asked_at: float


@dataclass(frozen=True, slots=True)
class PlacesSeen:
    """What the database has just said of all places for this run, with those of other runs that may leave theirs."""

    rows: tuple[PlaceRow, ...]


@dataclass(frozen=True, slots=True)
class EndpointSeen:
    """The daemon looked at the run's endpoint."""

    view: EndpointView


@dataclass(frozen=True, slots=True)
class Reported:
    """There is something to write into the job's row with the next `record_progress`; None: there is not."""

    report: dict[str, Any] | None


# ── looking and stopping ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Observed:
    """The launch was looked at."""

    observation: Observation
    whereabouts: Whereabouts
    progress: Progress | None
    """What a running launch says of its progress."""


@dataclass(frozen=True, slots=True)
class Listened:
    """The silence of the run was measured anew."""

    silence: Silence


@dataclass(frozen=True, slots=True)
class ProblemChanged:
    """The run can't go on for this reason, which is told to the operator; None: it can."""

    problem: str | None


@dataclass(frozen=True, slots=True)
class StopDecided:
    """The run is to be stopped, and then to be settled with this failure."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The launcher is asked to stop the run, at this moment on the lease clock."""

    at: float


# ── launching ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class HandlingBegun:
    """The database has counted that this worker begins a phase that might end the worker."""

    phase: str
    may_go_on: bool
    """False when too many workers have begun it and ended."""


@dataclass(frozen=True, slots=True)
class PutOff:
    """The run can't be launched now; it is tried again later."""

    problem: str
    base_seconds: float
    """How long it waits after the first try (`retries.patience_seconds`)."""
    exact_seconds: float | None = None
    """How long the launcher asked to be left alone: then it waits so long, and this counts as no try."""
    stage: str = "waiting_for_gpu_provider"
    """What the job's page says meanwhile."""
    refused_by: str | None = None
    """The place whose launcher did not accept it, for certain."""
    declined_by: str | None = None
    """The place whose launcher can't take the run's request at all."""
    doubtful_endpoint: str | None = None
    """Where it may have been accepted nevertheless."""


@dataclass(frozen=True, slots=True)
class LaunchBegun:
    """The database knows that the run is about to be sent to the launcher."""

    endpoint: str
    token: str = field(repr=False)
    assignment: Assignment
    """With the rows as they are now."""


@dataclass(frozen=True, slots=True)
class Launched:
    """The launcher accepted the run."""

    external_job_id: str
    endpoint: str
    launcher: str


# ── granting ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Granted:
    """The trainer's upload request was answered."""


@dataclass(frozen=True, slots=True)
class GrantPutOff:
    """The upload request could not be answered; the next cycle tries again."""

    problem: str


# ── settling ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended. Without a failure it was cancelled."""

    failure: Failure | None
    result: Result | None = None
    legacy: LegacyResult | None = None
    look: bool = False
    """Whether the artifact is looked for first: where its manifest lies, the run has succeeded despite the failure."""


@dataclass(frozen=True, slots=True)
class EndBegun:
    """The run has ended, and its end is about to be written."""

    summary: str
    """How it ended, in words for the operator."""
    log: tuple[str, ...] = ()
    """The end of the container's log, as its trainer sent it with its result."""


@dataclass(frozen=True, slots=True)
class LogKept:
    """The container's log is stored, or the storage refuses it for good."""


@dataclass(frozen=True, slots=True)
class FetchBegun:
    """An earlier trainer's files are about to be fetched."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The database has closed the run; `job_status` is the job's status afterwards."""

    job_status: str


Event = (
    CycleBegun
    | CycleDone
    | CyclePutOff
    | CycleFailed
    | Renewed
    | PlacesSeen
    | EndpointSeen
    | Reported
    | Observed
    | Listened
    | ProblemChanged
    | StopDecided
    | StopAsked
    | HandlingBegun
    | PutOff
    | LaunchBegun
    | Launched
    | Granted
    | GrantPutOff
    | EndBegun
    | FetchBegun
    | LogKept
    | Settled
)
