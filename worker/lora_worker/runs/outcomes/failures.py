"""Why a run ended without a result, in words for its user."""

from __future__ import annotations

from dataclasses import dataclass

from lora_contract.error_codes import FAULTS, ErrorCode, Fault


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run ended without a result; `message` is for its user."""

    code: str
    fault: Fault
    message: str


ARTIFACT_MISSING = Failure(
    "artifact_missing", Fault.TRANSIENT, "The training ended, but its result did not arrive in the storage."
)
CANCELLED_ELSEWHERE = Failure(
    "cancelled_at_launcher",
    Fault.PERMANENT,
    "The GPU job was stopped at the GPU provider, outside this application. Start the job again if nobody meant that.",
)
OUT_OF_MEMORY = Failure(
    ErrorCode.OUT_OF_MEMORY,
    FAULTS[ErrorCode.OUT_OF_MEMORY],
    "The GPU's memory was too small. Choose a smaller batch size or rank, or a larger GPU.",
)
OVER_TIME = Failure(
    ErrorCode.TIME_LIMIT,
    Fault.PERMANENT,
    "The training reached the longest time it may take and was stopped. "
    "Choose fewer epochs or a smaller dataset, or ask for a higher limit.",
)
OVER_BUDGET = Failure(
    ErrorCode.TIME_LIMIT,
    Fault.PERMANENT,
    "The training reached the most it may cost and was stopped. "
    "Choose fewer epochs, a smaller dataset or a cheaper GPU, or ask for a higher limit.",
)
WORKER_KILLED = Failure(
    "worker_killed",
    Fault.PERMANENT,
    "Preparing or finishing this job ended the service several times, so it was given up. Please report it to support.",
)
EARLIER_TRAINER = Failure(
    "earlier_trainer",
    Fault.PERMANENT,
    "The training ended, but was done by an earlier program, whose files this service does not fetch. "
    "Please report it to support.",
)
TRAINER_OUTDATED = Failure(
    "trainer_outdated",
    Fault.INFRASTRUCTURE,
    "The GPU machines run a training program that is too old for this service: it does not try a finished adapter. "
    "The job is tried again once they have the new one.",
)
NOT_PROVEN = Failure(
    "not_proven",
    Fault.PERMANENT,
    "The training ended, but the GPU machine's training program did not try the adapter on its base, as this service "
    "asks for. Its operator has to update that program; then start the job again.",
)
UPDATE_IMAGE = "set this release's image of the trainer in deploy.toml, `lora-worker deploy apply`, then `resume`"
"""What an operator does about an outdated trainer."""
STORAGE_REFUSED = Failure(
    ErrorCode.STORAGE_REFUSED,
    FAULTS[ErrorCode.STORAGE_REFUSED],
    "The training ended, but the storage does not take its adapter. It is tried again once the storage does.",
)
WORKER_FAULT = Failure(
    "worker_fault", Fault.PERMANENT, "The service could not handle this job. Please report it to support."
)
SILENT = Failure("gpu_silent", Fault.INFRASTRUCTURE, "The GPU machine was not heard of any more, so it was stopped.")
LOST = Failure("gpu_lost", Fault.INFRASTRUCTURE, "The GPU machine was lost while it trained.")
NEVER_STARTED = Failure("gpu_timed_out", Fault.INFRASTRUCTURE, "The GPU provider did not start or finish the job.")
NEVER_READY = Failure(
    "gpu_never_ready",
    Fault.INFRASTRUCTURE,
    "The GPU provider's machines did not get ready for the training in time.",
)
NO_GPU_THERE = Failure(
    "no_gpu_there",
    Fault.INFRASTRUCTURE,
    "The GPU provider had no machine for the training; it is tried at another one. This counts as no attempt.",
)
"""Of a run that waited at one endpoint in vain, and whose job goes to another."""
NO_RESULT = Failure("result_unreadable", Fault.TRANSIENT, "The training ended without a readable result.")
CRASHED = Failure("trainer_crashed", Fault.TRANSIENT, "The training program ended unexpectedly.")

_KNOWN_CODES = frozenset(
    {
        *ErrorCode,
        *(failure.code for failure in (
            ARTIFACT_MISSING, CANCELLED_ELSEWHERE, WORKER_KILLED, EARLIER_TRAINER, NOT_PROVEN, TRAINER_OUTDATED,
            WORKER_FAULT, SILENT, LOST, NEVER_STARTED, NEVER_READY,
            NO_GPU_THERE, NO_RESULT, CRASHED,
        )),
        # Of the preflight, and of what a run asked for or ended with.
        "budget_exhausted", "dataset_deleted", "dataset_foreign", "dataset_missing", "dataset_not_ready",
        "gpu_config_invalid", "job_missing", "job_unreadable", "proof_refused", "result_refused", "training_failed",
        "upload_request_invalid", "waiting_for_dataset",
    }
)  # fmt: skip


def known_code(code: str) -> str:
    """Return the code where it is one of this release, else `other`: a metric must not get labels from outside."""
    return code if code in _KNOWN_CODES else "other"


def unreadable(sentence: str) -> Failure:
    """The failure of a job whose row can't be read; the sentence says why."""
    return Failure("job_unreadable", Fault.PERMANENT, sentence)
