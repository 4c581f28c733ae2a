"""The codes with which a trainer explains a failure, and what kind of failure each is."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """The kind of a failure, which decides whether and how often the run is retried."""

    PERMANENT = "permanent"
    """Caused by the job itself: a retry would fail in the same way, so there is none."""
    TRANSIENT = "transient"
    """Temporary: retried with backoff, and counted against the job's attempts."""
    INFRASTRUCTURE = "infrastructure"
    """Caused by the GPU cloud (preemption, a lost machine) or by our own services: retried, with a separate limit."""


class ErrorCode(StrEnum):
    """Why a trainer ended without an artifact. `FAULTS` gives the kind of each failure."""

    REQUEST_INVALID = "request_invalid"
    HYPERPARAMETERS_INVALID = "hyperparameters_invalid"
    DATASET_UNREACHABLE = "dataset_unreachable"
    DATASET_CHANGED = "dataset_changed"
    DATASET_INVALID = "dataset_invalid"
    BASE_MODEL_UNKNOWN = "base_model_unknown"
    BASE_MODEL_UNREACHABLE = "base_model_unreachable"
    BASE_MODEL_MISMATCH = "base_model_mismatch"
    INIT_ADAPTER_UNREACHABLE = "init_adapter_unreachable"
    INIT_ADAPTER_UNUSABLE = "init_adapter_unusable"
    DOES_NOT_FIT = "does_not_fit"
    DISK_FULL = "disk_full"
    OUT_OF_MEMORY = "out_of_memory"
    LOSS_NOT_FINITE = "loss_not_finite"
    NOTHING_LEARNED = "nothing_learned"
    NOT_APPLIED = "not_applied"
    PROOF_MISSING = "proof_missing"
    TIME_LIMIT = "time_limit"
    CHANNEL_UNREACHABLE = "channel_unreachable"
    UPLOAD_FAILED = "upload_failed"
    STORAGE_REFUSED = "storage_refused"
    ARTIFACT_TOO_LARGE = "artifact_too_large"
    GRANT_MISSING = "grant_missing"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    CHILD_CRASHED = "child_crashed"
    VOLUME_MISSING = "volume_missing"
    UNFIT = "unfit"
    EXPORT_REFUSED = "export_refused"
    INTERNAL = "internal"


FAULTS: dict[ErrorCode, Fault] = {
    ErrorCode.REQUEST_INVALID: Fault.PERMANENT,
    ErrorCode.HYPERPARAMETERS_INVALID: Fault.PERMANENT,
    ErrorCode.DATASET_UNREACHABLE: Fault.TRANSIENT,
    # The file was replaced between preflight and download. The preflight of the retry reads the new file.
    ErrorCode.DATASET_CHANGED: Fault.TRANSIENT,
    ErrorCode.DATASET_INVALID: Fault.PERMANENT,
    ErrorCode.BASE_MODEL_UNKNOWN: Fault.PERMANENT,
    ErrorCode.BASE_MODEL_UNREACHABLE: Fault.TRANSIENT,
    ErrorCode.BASE_MODEL_MISMATCH: Fault.PERMANENT,
    # The preflight of the retry finds the adapter anew, and says so where it is gone.
    ErrorCode.INIT_ADAPTER_UNREACHABLE: Fault.TRANSIENT,
    ErrorCode.INIT_ADAPTER_UNUSABLE: Fault.PERMANENT,
    ErrorCode.DOES_NOT_FIT: Fault.PERMANENT,
    ErrorCode.DISK_FULL: Fault.TRANSIENT,
    ErrorCode.OUT_OF_MEMORY: Fault.PERMANENT,
    ErrorCode.LOSS_NOT_FINITE: Fault.PERMANENT,
    ErrorCode.NOTHING_LEARNED: Fault.PERMANENT,
    # A retry would try the same files.
    ErrorCode.NOT_APPLIED: Fault.PERMANENT,
    # The adapter waits on the volume; the next attempt only tries and publishes it.
    ErrorCode.PROOF_MISSING: Fault.TRANSIENT,
    ErrorCode.TIME_LIMIT: Fault.PERMANENT,
    ErrorCode.CHANNEL_UNREACHABLE: Fault.TRANSIENT,
    ErrorCode.UPLOAD_FAILED: Fault.TRANSIENT,
    # The operator has to repair this. Meanwhile the adapter waits on the volume, and the worker launches no run that
    # would cost money while the storage refuses uploads.
    ErrorCode.STORAGE_REFUSED: Fault.INFRASTRUCTURE,
    # A retry would write the same files.
    ErrorCode.ARTIFACT_TOO_LARGE: Fault.PERMANENT,
    # No worker was running to grant the upload. The next attempt publishes the finished adapter without training again.
    ErrorCode.GRANT_MISSING: Fault.INFRASTRUCTURE,
    ErrorCode.SUPERSEDED: Fault.INFRASTRUCTURE,
    ErrorCode.CANCELLED: Fault.PERMANENT,
    ErrorCode.INTERRUPTED: Fault.INFRASTRUCTURE,
    ErrorCode.CHILD_CRASHED: Fault.TRANSIENT,
    # Of errands only, which belong to no run.
    ErrorCode.VOLUME_MISSING: Fault.INFRASTRUCTURE,
    ErrorCode.UNFIT: Fault.INFRASTRUCTURE,
    ErrorCode.EXPORT_REFUSED: Fault.PERMANENT,
    ErrorCode.INTERNAL: Fault.TRANSIENT,
}
