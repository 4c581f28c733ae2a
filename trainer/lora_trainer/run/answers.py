"""What the database's functions answer the trainer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    # A newer database may add keys.
    model_config = ConfigDict(extra="ignore")


class CheckIn(_Answer):
    """Answer of `check_in_run`. Called again with the same execution it is the heartbeat."""

    may_train: bool
    reason: Literal["ok", "unknown_token", "superseded", "cancelled", "ended"]
    cancel_requested: bool = False
    attempt: int | None = None
    progress_stored: bool = False
    """Whether the progress of a heartbeat was stored (`heartbeat_run`)."""


class UploadRequested(_Answer):
    """Answer of `request_upload`."""

    ok: bool
    reason: str | None = None


class UploadGrant(_Answer):
    """Answer of `upload_grant`: `sealed` opens with the run's token (`lora_contract.grants`)."""

    granted: bool
    sealed: str | None = None
    reason: str | None = None
