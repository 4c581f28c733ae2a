"""What the daemon needs of a GPU cloud."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable


class LaunchState(StrEnum):
    """A launch as the launcher sees it. MISSING and UNKNOWN are not FAILED and end nothing alone."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    MISSING = "missing"
    """The launcher works, and knows no such id: expired, deleted by its ttl, or never there."""
    UNKNOWN = "unknown"
    """The status could not be read."""


ENDED_STATES = frozenset({LaunchState.COMPLETED, LaunchState.FAILED, LaunchState.CANCELLED, LaunchState.TIMED_OUT})


class EndCause(StrEnum):
    """Why a launch FAILED, as far as its launcher says. Each launcher translates its own error texts into these."""

    OVER_TIME = "over_time"
    """It ran longer than its policy allows."""
    LOST = "lost"
    """Its machine was lost, and the launcher does not start it again."""
    OUT_OF_MEMORY = "out_of_memory"
    """Its program raised an error because the GPU's memory was too small."""
    IMPORT_FAILED = "import_failed"
    """Its program raised an error because a module can't be imported: the image is broken."""
    RAISED = "raised"
    """Its program raised another error."""
    UNKNOWN = "unknown"
    """The launcher gives no cause, or one that it has no translation for."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a launch. `output` is the launcher's as it came; `cause` counts where the state is FAILED."""

    state: LaunchState
    output: Any = None
    cause: EndCause = EndCause.UNKNOWN
    execution_seconds: float | None = None
    billed_seconds: float | None = None
    """What the launcher itself bills of a launch that has ended, where it says so: less than it worked, for a spot
    instance. It counts instead of every other clock."""
    queue_seconds: float | None = None
    reason: str | None = None
    """Why the state is UNKNOWN or MISSING, for the log."""
    container: str | None = None
    """The launcher's id of the container that works on the launch, or did so last."""
    ends_by_itself: bool = False
    """Whether its machine ends with its program, and the launcher only then says what it bills: worth a short wait
    after the trainer's report."""
    is_reported: bool = False
    """Whether `output` is the result that the trainer has reported by its run's own channel, so that the launch is over
    for its run, whatever its state. No launcher sets this."""

    @property
    def ended(self) -> bool:
        """Whether the launcher says that it is over, so that nothing more is billed."""
        return self.state in ENDED_STATES


@dataclass(frozen=True, slots=True)
class LaunchRef:
    """A launch as its launcher finds it: the id that it got, and the endpoint that gave it."""

    endpoint: str | None
    """None where it was not noted: the endpoint of today."""
    external_job_id: str


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a launch may take, executing and altogether from its submission, and who is told when it changes."""

    execution_seconds: float
    ttl_seconds: float
    wake_url: str | None = field(default=None, repr=False)
    """Where the launcher is asked to POST when the launch ends; only a hint. One that can't ignores it."""


class EndpointState(StrEnum):
    """Whether an endpoint's workers get ready for the jobs that wait there."""

    WELL = "well"
    """One is ready or at work, or nothing waits."""
    STARTING = "starting"
    """Jobs wait, and its workers start, or ended while they did; none is ready."""
    UNKNOWN = "unknown"
    """There is no worker at all (no GPU is free, or none is allowed), or the endpoint can't be looked at."""


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """Whether the endpoint can take runs; `problem` is a sentence for the operator. The rest are counts."""

    reachable: bool
    workers: int
    """Those that are ready, at work, or starting."""
    jobs_queued: int
    problem: str | None = None
    ready: int = 0
    running: int = 0
    starting: int = 0
    unhealthy: int = 0
    jobs_running: int = 0

    @property
    def state(self) -> EndpointState:
        """What the counts say together."""
        if not self.reachable:
            return EndpointState.UNKNOWN
        if self.ready or self.running or self.jobs_running or not self.jobs_queued:
            return EndpointState.WELL
        return EndpointState.STARTING if self.starting or self.unhealthy else EndpointState.UNKNOWN

    @property
    def lacks_gpu(self) -> bool:
        """Whether what waits there gets no GPU now: no worker is there, all end at once, or nobody answers."""
        return self.state is EndpointState.UNKNOWN or (self.state is EndpointState.STARTING and not self.starting)


@dataclass(frozen=True, slots=True)
class Guide:
    """The words in which operators are told of a launcher."""

    title: str
    """Its name in sentences."""
    console: str
    """Where an operator sees its jobs and logs, as a sentence goes on after "see"."""
    check: str
    """What to do when its endpoint does not answer as it should."""
    former_endpoint: str
    """What to do when an endpoint of former settings can't be reached."""
    volume: str
    """Where an operator finds what a trainer has left on the endpoint's volume, as a sentence."""


@dataclass(frozen=True, slots=True)
class ContainerLine:
    """A line that the launcher has of a container. `text` is as it came: unbounded words of a container."""

    container: str
    text: str
    is_launchers: bool = False
    """Whether the launcher itself wrote it, about the container."""
    at: datetime | None = None


@runtime_checkable
class ContainerLogs(Protocol):
    """Reads what containers have printed. A launcher may have these methods itself, or a reader beside it
    (`Services.container_logs`). Without one, a log is kept only of a run whose trainer sent it with the result."""

    async def read(self, launch: LaunchRef, container: str | None, *, most_lines: int) -> list[ContainerLine]:
        """The last lines of a launch's container, oldest first. `None`: it waits for one, and the lines are those of
        its endpoint's containers that have taken no launch yet.

        Raises:
            ServiceError: they can't be read; the text says why.
        """

    def follow(self, launch: LaunchRef, container: str, *, since: datetime | None) -> AsyncIterator[ContainerLine]:
        """The lines of a container as they come; ends after some seconds without one, and may be called again.

        Raises:
            ServiceError: they can't be read; the text says why.
        """


class Launcher(Protocol):
    """A GPU cloud. Methods are safe to call side by side.

    All that is particular to one cloud (statuses, error texts, limits, addresses, what its operators are told) is in
    its own module and comes out of there in the words of this one.
    """

    name: str
    """Stored with each launch. Another launcher's launches are left alone."""
    endpoint: str
    """Where launches go now. It is stored with each of them, so it holds no key."""
    guide: Guide
    longest_launch_seconds: float
    """No launch lives longer, from its submission on, whatever becomes of it."""
    takes_errands: bool
    """Whether it also takes requests that are no training (`lora_contract.errands`), whose answer is their output. One
    that takes none returns no output: only the run's own channel speaks for its machines, which must check in."""

    def reaches(self, endpoint: str) -> bool:
        """Whether a launch that a row notes at this endpoint may be looked at there, with this launcher's key."""

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """Start a run; the launcher's id of it.

        Raises:
            LaunchRefusedError: it was not accepted, since the launcher takes no such request.
            ServiceRefusedError: it was not accepted, since the key or the endpoint is wrong.
            ServiceUnavailableError: it was not accepted; the same call may be later.
            LaunchInDoubtError: it may have been accepted.
        """

    async def observe(self, launch: LaunchRef) -> Observation:
        """Look at a launch where it was made. Never raises for what the launcher answers: UNKNOWN says why.

        A launch at an endpoint that it does not reach is UNKNOWN, never MISSING: its run would be started again.
        """

    async def cancel(self, launch: LaunchRef) -> bool:
        """Ask for the end of a launch; True when the launcher took the request or knows no such launch."""

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """Whether an endpoint can take runs; by default the one where launches go now."""


@dataclass(frozen=True, slots=True)
class OwnedLaunch:
    """A launch that lives in the launcher's account and bears this project's mark."""

    external_job_id: str
    run_id: str
    """The run that it was started for, as its name or label says."""
    age_seconds: float | None
    """Since it was accepted; None where the launcher does not say."""


@runtime_checkable
class OwnerOfLaunches(Protocol):
    """A launcher that can say what it has running, so that a launch whose id was never recorded is found and ended.

    A cloud whose launches cost until they are stopped must have it: a worker that dies after the submission, before the
    id is recorded, leaves a machine that nobody knows. A queue that drops its jobs by itself does without.
    """

    @property
    def account(self) -> str:
        """What `owned` lists, by a name of its own: places of one launcher that share it are listed once."""

    async def owned(self) -> list[OwnedLaunch]:
        """All launches that live there and bear this project's mark (`launchers.marks`): at most 1000, oldest first.

        Raises:
            ServiceError: they can't be listed; the text says why.
        """
