"""A run as a managed job of SkyPilot: its name, its task, and what the queue says of it.

Sources: SkyPilot 0.14's `ManagedJobStatus` and `jobs/controller.py` (what each status means, and the texts of
`failure_reason`), and its schema of a task's YAML.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lora_contract.bounds import Instant, Seconds
from lora_contract.machine_request import LAUNCH_ID_VARIABLE, pack_request
from lora_worker.launchers.base import EndCause, EndpointHealth, LaunchState, Observation, Policy
from lora_worker.launchers.machine_types import asked_gpu, longest_part
from lora_worker.launchers.marks import launch_name
from lora_worker.launchers.skypilot.settings import SkyPilotSettings

MOST_LISTED = 1000
"""Of the latest jobs with the project's mark, so many are read at a time."""
VOLUME = "/lora-volume"
_KILL_AFTER_SECONDS = 120
_MOST_MINUTES = 10**6
_OUT_OF_RESOURCES_SECONDS = 900.0
"""For so long after a job found no machine the server counts as without one."""

_ACCELERATORS = {
    "A100-80GB": "A100-80GB", "A100-SXM4-80GB": "A100-80GB", "A100-40GB": "A100", "A100-SXM4-40GB": "A100",
    "A100-PCIE-40GB": "A100", "A100": "A100-80GB", "H100": "H100", "H200": "H200", "B200": "B200",
    "RTXPRO6000": "RTXPRO6000", "L40S": "L40S", "L40": "L40", "RTX6000ADA": "RTX6000-Ada", "A40": "A40",
    "RTXA6000": "RTXA6000", "RTX4090": "RTX4090", "L4": "L4", "RTXA5000": "RTXA5000", "RTX3090": "RTX3090",
    "RTXA4000": "RTXA4000", "RTXA4500": "RTXA4500", "V100-32GB": "V100-32GB", "V100": "V100-32GB",
}  # fmt: skip
"""SkyPilot's names, by what a GPU's name in the price table or in a job has as a part; the longest match counts. An
A100 without its memory is the one with 80 GB, as in the price table, and not SkyPilot's A100, which has 40."""

_STATES = {
    **dict.fromkeys(("PENDING", "SUBMITTED", "STARTING", "RECOVERING", "CANCELLING"), LaunchState.QUEUED),
    **dict.fromkeys(("RUNNING", "WINDING_DOWN"), LaunchState.RUNNING),
    "SUCCEEDED": LaunchState.COMPLETED,
    "CANCELLED": LaunchState.CANCELLED,
    **dict.fromkeys(("FAILED", "FAILED_SETUP", "FAILED_CONTROLLER"), LaunchState.FAILED),
    **dict.fromkeys(("FAILED_NO_RESOURCE", "FAILED_PRECHECKS"), LaunchState.TIMED_OUT),
}
"""What each status means of a job that has not run before; what else it may mean is told by `_meaning`."""
_LIVE = {LaunchState.QUEUED, LaunchState.RUNNING, None}
_NO_MACHINE = {"FAILED_NO_RESOURCE", "FAILED_PRECHECKS"}
_EXIT_STATUS = re.compile(r"exited with exit codes? \[?([0-9]{1,3})")
_TIMED_OUT, _KILLED = 124, 137
"""The exit status of `timeout` for a command that took too long, and of a process that was killed."""


@dataclass(frozen=True, slots=True)
class TaskShape:
    """What is the same for all jobs of one worker."""

    mark: str
    """The project's: `project_mark`."""
    image: str
    infra: tuple[str, ...] = ()
    is_spot: bool = False
    accelerator: str = ""
    gpu_type: str | None = None
    gpu_count: int = 1
    disk_gb: int = 256
    volume: str = ""
    hugging_face_token: str = ""

    @classmethod
    def of(cls, settings: SkyPilotSettings, mark: str) -> TaskShape:
        """The shape that the settings ask for."""
        return cls(
            mark=mark,
            image=settings.skypilot_image,
            infra=settings.skypilot_infra,
            is_spot=settings.skypilot_spot,
            accelerator=settings.skypilot_accelerator,
            gpu_type=settings.endpoint_gpu_type,
            gpu_count=settings.endpoint_gpu_count,
            disk_gb=settings.skypilot_disk_gb,
            volume=settings.skypilot_volume,
            hugging_face_token=settings.skypilot_hugging_face_token.get_secret_value(),
        )


class Names:
    """The names of a project's jobs: `lora-<run>-<mark>-<minutes>m-<endpoint><digits>`.

    A job's name is the launch's id. It is known before the submission, so a job whose answer was lost is found by it,
    and the container knows it from the start; SkyPilot numbers a job only then. The minutes are those that it may take
    altogether, four digits tell which of the server's endpoints it is of, and the last eight are no other launch's.
    """

    def __init__(self, mark: str) -> None:
        self.part = f"-{mark}-"
        """What all of them have, and names of other projects don't."""

    def new(self, run_id: str, policy: Policy, accelerator: str = "") -> str:
        """A name for one more launch of a run; `accelerator` is what its endpoint has behind the `#`.

        Raises:
            ValueError: the run's id is no UUID.
        """
        minutes = min(max(int(policy.ttl_seconds / 60), 1), _MOST_MINUTES)
        return f"{launch_name(run_id)}{self.part}{minutes}m-{_digits_of(accelerator)}{secrets.token_hex(4)}"

    def is_ours(self, text: str) -> bool:
        """Whether a text is the name of a job with this project's mark."""
        return self.part in text and is_launch(text)

    def is_at(self, name: str, accelerator: str) -> bool:
        """Whether the job of this name was made at the endpoint that has this behind its `#`."""
        found = _LAUNCH.fullmatch(name)
        return found is not None and self.part in name and found[2] == _digits_of(accelerator)


_LAUNCH = re.compile(r"lora-[0-9a-f]{32}-[0-9a-f]{10}-([0-9]{1,7})m-([0-9a-f]{4})[0-9a-f]{8}")


def is_launch(text: str) -> bool:
    """Whether a text can be a launch's name, of whichever project: containers name their own."""
    return _LAUNCH.fullmatch(text) is not None


def ttl_seconds_of(name: str) -> float | None:
    """How long the job of this name may take altogether; None where it is no launch's."""
    found = _LAUNCH.fullmatch(name)
    return float(found[1]) * 60 if found else None


def _digits_of(accelerator: str) -> str:
    return hashlib.sha256(accelerator.encode()).hexdigest()[:4]


class Job(BaseModel):
    """A managed job of the queue, as far as the worker reads it."""

    model_config = ConfigDict(extra="ignore")

    job_id: int = Field(ge=0, le=2**53)
    job_name: str = Field(max_length=500)
    status: str = Field(max_length=60)
    job_duration: Seconds = None
    """Seconds in which it ran, all its machines together."""
    schedule_state: str | None = Field(default=None, max_length=60)
    submitted_at: Instant = None
    start_at: Instant = None
    end_at: Instant = None
    failure_reason: str | None = Field(default=None, max_length=1000)

    @property
    def is_live(self) -> bool:
        """Whether it waits or works. A status that is not known counts as live: nothing ends for it."""
        return _STATES.get(self.status) in _LIVE

    @property
    def was_never_queued(self) -> bool:
        """Whether its submission broke off: SkyPilot shows it as waiting, and never starts it."""
        return self.status == "PENDING" and self.schedule_state == "INACTIVE"

    def is_overdue(self, ttl_seconds: float | None, now: float) -> bool:
        """Whether it has no machine, and its time is over: it found none, or none after one was taken away."""
        waits = self.start_at is None or self.status == "RECOVERING"
        return waits and self.is_older_than(ttl_seconds, now)

    def is_older_than(self, ttl_seconds: float | None, now: float) -> bool:
        """Whether it lives for longer than its launch may, or did so until its end."""
        if self.submitted_at is None or ttl_seconds is None:
            return False
        return (self.end_at or now) - self.submitted_at > ttl_seconds


_JOBS = TypeAdapter(list[Job])


def read_jobs(value: Any) -> list[Job]:
    """The jobs of a list, newest first.

    Raises:
        ValueError: it can't be read; the text names the first field that is wrong.
    """
    try:
        return _JOBS.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "list"
        raise ValueError(f"the queue's {where:.60} can't be read") from None


def accelerator_for(gpu_type: str) -> str:
    """SkyPilot's name of a GPU; the name as it is where there is no other: a cluster may have names of its own."""
    known = longest_part(_ACCELERATORS, gpu_type)
    return _ACCELERATORS[known] if known else gpu_type


def accelerator_fault(accelerator: str, gpu_type: str | None) -> str | None:
    """Why machines with this GPU of SkyPilot's can't be billed as `gpu_type`, as the end of a sentence; else None.

    Names of a cluster's own, which `accelerator_for` does not know, are believed to be what is billed.
    """
    if not accelerator:
        return None
    if gpu_type is None:
        return f"names the GPU {accelerator}, and the one that each job asks for would be billed"
    known = set(_ACCELERATORS.values())
    started = accelerator if accelerator in known else accelerator_for(accelerator)
    billed = accelerator_for(gpu_type)
    return (
        None
        if {started, billed} - known or started == billed
        else f"names the GPU {accelerator}, and {gpu_type:.60} is billed"
    )


def task_of(shape: TaskShape, payload: dict[str, Any], policy: Policy, name: str) -> dict[str, Any]:
    """The task of a launch, as SkyPilot's YAML has it, without its secrets.

    Raises:
        ValueError: no GPU is named that SkyPilot could look for.
    """
    resources: dict[str, Any] = {
        "accelerators": {_accelerator(shape, payload): shape.gpu_count},
        "image_id": f"docker:{shape.image}",
        "disk_size": shape.disk_gb,
        "use_spot": shape.is_spot,
    }
    if shape.infra:
        resources["any_of"] = [each for infra in shape.infra for each in _choices_at(infra, is_spot=shape.is_spot)]
    envs = {LAUNCH_ID_VARIABLE: name, **({"LORA_TRAINER_VOLUME": VOLUME} if shape.volume else {})}
    task = {
        "resources": resources,
        "num_nodes": 1,
        "envs": envs,
        "run": _command(int(policy.execution_seconds)),
    }
    if not shape.volume:
        return task
    if "://" in shape.volume:
        # Cached: checkpoints are renamed, which a plain mount of a bucket can't do.
        return {**task, "file_mounts": {VOLUME: {"source": shape.volume, "mode": "MOUNT_CACHED"}}}
    return {**task, "volumes": {VOLUME: shape.volume}}


def _choices_at(infra: str, *, is_spot: bool) -> list[dict[str, Any]]:
    """The ways to have a machine at a place; what they leave out is as in the resources beside them."""
    if is_spot and infra.partition("/")[0].lower() in {"k8s", "kubernetes"}:
        # A cluster that labels no spot nodes would never be chosen.
        return [{"infra": infra}, {"infra": infra, "use_spot": False}]
    return [{"infra": infra}]


def secrets_of(shape: TaskShape, payload: dict[str, Any]) -> dict[str, str]:
    """The task's secrets, which SkyPilot shows nowhere: the request, and a token for base models.

    Raises:
        ValueError: the request is too large.
    """
    packed = pack_request(payload, most_characters=8000, most_variables=26)
    return {**packed, **({"HF_TOKEN": shape.hugging_face_token} if shape.hugging_face_token else {})}


def _accelerator(shape: TaskShape, payload: dict[str, Any]) -> str:
    if shape.accelerator:
        return shape.accelerator
    gpu_type = shape.gpu_type or asked_gpu(payload)
    if not isinstance(gpu_type, str) or not re.fullmatch(r"[A-Za-z0-9 ._/-]{1,60}", gpu_type):
        raise ValueError("the job names no GPU that SkyPilot could look for: set LORA_WORKER_SKYPILOT_ACCELERATOR")
    return accelerator_for(gpu_type)


def _command(seconds: int) -> str:
    """What a machine runs. SkyPilot has no limit of time for a job, so the machine has one.

    A trainer that ignores the first signal is killed, which has the status of one that was killed from outside.
    """
    return (
        f"timeout --kill-after={_KILL_AFTER_SECONDS} {seconds} python -u -m lora_trainer.machine\n"
        "status=$?\n"
        f'if [ "$status" -eq {_KILLED} ] && [ "$SECONDS" -ge {seconds} ]; then status={_TIMED_OUT}; fi\n'
        'exit "$status"\n'
    )


def read_observation(job: Job, ttl_seconds: float | None) -> Observation:
    """A look at a job. The output is always None: a trainer reports by its run's own channel."""
    state, cause, reason = _meaning(job, ttl_seconds)
    waited = job.start_at - job.submitted_at if job.start_at is not None and job.submitted_at is not None else None
    return Observation(
        state,
        cause=cause,
        reason=reason,
        # One that waits for another machine has worked before, and that is billed.
        execution_seconds=job.job_duration if state is not LaunchState.QUEUED or job.start_at is not None else None,
        queue_seconds=max(waited, 0.0) if waited is not None else None,
    )


def _meaning(job: Job, ttl_seconds: float | None) -> tuple[LaunchState, EndCause, str | None]:
    """A job's status in the launchers' words, why it failed, and why its state is not known."""
    has_run = job.start_at is not None
    if job.status == "FAILED":
        return LaunchState.FAILED, _cause(job), None
    # What is cancelled so late was so for want of a machine, by `SkyPilotLauncher.observe`.
    found_none = job.status in _NO_MACHINE or (job.status == "CANCELLED" and job.is_older_than(ttl_seconds, 0.0))
    if job.status == "FAILED_CONTROLLER" or (found_none and has_run):
        return LaunchState.FAILED, EndCause.LOST, None
    if found_none:
        return LaunchState.TIMED_OUT, EndCause.UNKNOWN, None
    state = _STATES.get(job.status)
    if state is None:
        reason = f"its status is {job.status!r}, which this worker does not know"
        return LaunchState.UNKNOWN, EndCause.UNKNOWN, reason
    # Without a machine a job says nothing, and must not count as silent: SkyPilot may look for one for hours.
    return (LaunchState.RUNNING if has_run and job.status == "CANCELLING" else state), EndCause.UNKNOWN, None


def _cause(job: Job) -> EndCause:
    found = _EXIT_STATUS.search(job.failure_reason or "")
    if found is None:
        return EndCause.UNKNOWN
    return {_TIMED_OUT: EndCause.OVER_TIME, _KILLED: EndCause.LOST}.get(int(found[1]), EndCause.RAISED)


def read_health(jobs: Sequence[Job], now: float) -> EndpointHealth:
    """What a project's jobs say of their server: of machines nothing else is told before one is asked for."""
    states = [read_observation(job, None).state for job in jobs]
    running, queued = states.count(LaunchState.RUNNING), states.count(LaunchState.QUEUED)
    recent = [job for job in jobs if job.end_at is not None and now - job.end_at < _OUT_OF_RESOURCES_SECONDS]
    problem = None
    if not running and any(job.status in _NO_MACHINE and job.start_at is None for job in recent):
        problem = "it found no machine for a job within the last quarter of an hour: `sky jobs queue` says why"
    return EndpointHealth(True, running, queued, problem, running=running, jobs_running=running)


def live_of_run(jobs: Sequence[Job], run_id: str, names: Names) -> list[Job]:
    """The jobs of a run that wait or work, newest first."""
    prefix = launch_name(run_id) + names.part
    return [job for job in jobs if job.is_live and job.job_name.startswith(prefix) and names.is_ours(job.job_name)]


def of_launch(jobs: Sequence[Job], name: str) -> list[Job]:
    """The jobs of a launch, those that live first: a submission that the network repeated makes two."""
    return sorted((job for job in jobs if job.job_name == name), key=lambda job: (not job.is_live, -job.job_id))


def now_seconds() -> float:
    """The time as SkyPilot counts it: Unix seconds."""
    return time.time()
