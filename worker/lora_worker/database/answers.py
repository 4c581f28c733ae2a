"""The answers of the functions with which the daemon works on runs."""

from __future__ import annotations

from typing import Any, Literal, NotRequired
from uuid import UUID

from typing_extensions import TypedDict


class MayLaunch(TypedDict):
    """Answer of `begin_launch_2`: whether the run may be launched, and if not, why.

    If it may, the answer has the job's two columns as they are now, with the keys of both of the application's shapes;
    neither where the columns can't be read.
    """

    may_launch: bool
    reason: str | None
    hyperparameters: NotRequired[Any]
    gpu_config: NotRequired[Any]


class BreakersAnswer(TypedDict):
    """Answer of `pass_breakers`: whether the run may be launched, and if not, why."""

    go: bool
    reason: NotRequired[Literal["lease_lost", "held"]]
    kind: NotRequired[Literal["base_model", "image"]]
    name: NotRequired[str]
    message: NotRequired[str]


class EndpointAnswer(TypedDict):
    """Answer of `note_endpoint_2`."""

    starting_seconds: float
    """For how long the endpoint's workers have been starting without one of them getting ready."""
    without_gpu_seconds: float
    """For how long jobs have waited there without a GPU, or without an answer of the endpoint."""


class PlaceRow(TypedDict):
    """What is known of an endpoint where a run may be launched; an element of `training_places`."""

    endpoint: str
    launches: int
    """How many other runs may have a launch there that has not ended."""
    without_gpu_seconds: float
    passed_over_seconds: float
    """How much longer the endpoint is left out, since a run has waited there in vain."""
    held_seconds: float
    """How much longer jobs are held there for its image or the base model."""
    was_left: bool
    """Whether the run's job has left the endpoint for want of a GPU in the last hours."""
    problem: str | None


class ResumedHold(TypedDict):
    """A base model or an image for which jobs were held, and how many these were; an element of `resume_training`."""

    kind: str
    name: str
    endpoint: str
    jobs: int


class ReportAnswer(TypedDict):
    """Whether the progress report of one run was stored; an element of `record_progress`."""

    run_id: UUID
    applied: bool
    refused: NotRequired[str | None]
    """The SQLSTATE with which the database refused the report's values."""


class Stray(TypedDict):
    """A launch that no live run owns."""

    run_id: str
    launcher: str | None
    endpoint: str | None
    """The endpoint of the launch, if it was recorded."""
    external_job_id: str
    endpoints: list[str]
    """All endpoints at which its run was launched."""
    age_seconds: float | None


class OwnedFound(TypedDict):
    """A launch in a launcher's account that was not recorded as it is (`note_owned_launches`)."""

    external_job_id: str
    run_id: str
    """The run that it was started for, as its name there says."""
    found: Literal["noted", "reopened", "another_runs", "no_run"]


class WorkerOrders(TypedDict):
    """Answer of `report_worker_2`: what an operator wants of the worker."""

    drain: bool
    """Whether it is to take nothing new, and to end when its runs have ended."""


class ServingErrand(TypedDict):
    """Answer of `claim_serving_errand`: an errand for the folder of served adapters."""

    id: UUID
    lease_token: UUID
    endpoint: str | None
    """Where it was sent, or is to be sent."""
    external_job_id: str | None
    """None: it was not sent, or nobody knows."""
    age_seconds: float
    request: dict[str, Any]
    """`remove` and `aliases` of `lora_contract.errands.ServingRequest`."""
