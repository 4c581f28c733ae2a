"""The answers of the database functions that the trainer calls."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    # Unknown keys are ignored, because a newer database may add some.
    model_config = ConfigDict(extra="ignore")


class CheckIn(_Answer):
    """Answer of `check_in_run`. Further calls of the same execution are its heartbeat."""

    may_train: bool
    reason: Literal["ok", "unknown_token", "superseded", "cancelled", "ended"]
    cancel_requested: bool = False
    attempt: int | None = None
    progress_stored: bool = False
    """Whether the progress of a heartbeat was stored (`heartbeat_run`)."""


class Finished(CheckIn):
    """Answer of `finish_run`."""

    result_stored: bool = False
    """Whether the database has this execution's result now, and gives it to the worker."""


class UploadRequested(_Answer):
    """Answer of `request_upload`."""

    ok: bool
    reason: str | None = None


class UploadGrant(_Answer):
    """Answer of `upload_grant`. The run's token decrypts `sealed`, see `lora_contract.grants`."""

    granted: bool
    sealed: str | None = None
    reason: str | None = None
