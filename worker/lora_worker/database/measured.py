"""What a training has brought, as the database keeps it with the run: figures, the proof, the name to call."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_contract.application import Application
from lora_contract.bounds import NoneIfInvalid
from lora_contract.evaluation import Evaluation
from lora_worker.database.job_reports import JobDetails

_MAX_NAME_CHARACTERS, _MAX_METHOD_CHARACTERS = 200, 50


class Measured(BaseModel):
    """The column `measured` of a run. A part that can't be read is None, and the others still count."""

    model_config = ConfigDict(extra="ignore")

    evaluation: Annotated[Evaluation | None, NoneIfInvalid] = None
    application: Annotated[Application | None, NoneIfInvalid] = None
    serving_name: Annotated[str | None, Field(max_length=_MAX_NAME_CHARACTERS), NoneIfInvalid] = None
    """By which name an endpoint serves the adapter; None where none does."""
    method: Annotated[str | None, Field(max_length=_MAX_METHOD_CHARACTERS), NoneIfInvalid] = None
    """How it was trained; None where its trainer did not say."""
    dataset_sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$"), NoneIfInvalid] = None
    """Of the file that it was trained on, by which versions on the same content are known."""
    reward_accuracy: Annotated[float | None, Field(ge=0, le=1), NoneIfInvalid] = None
    """Of preference methods: the share of the answers that the adapter rates rightly."""


def measured_of(details: JobDetails) -> Measured:
    """Read what the training of a job has brought. A model that was deleted answers by no name any more."""
    measured, artifact = read_measured(details.get("measured")), details["artifact"]
    if artifact is not None and artifact["deleted_at"] is not None:
        return measured.model_copy(update={"serving_name": None})
    return measured


def read_measured(value: Any) -> Measured:
    """Read what a job's details say under `measured`; whatever can't be read is not known."""
    try:
        return Measured.model_validate(value)
    except ValidationError:
        return Measured()
