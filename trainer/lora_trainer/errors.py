"""The reasons for which a training ends without a published adapter. Each carries a sentence for the user.

TrainingError                    code, message, hint; travels to the worker as `protocol.TrainerError`
├── RequestInvalidError          the launch's input is not a request
├── HyperparametersInvalidError  a choice that this base model does not allow
├── FenceLostError               this execution may not train, or not any more
│   ├── SupersededError          another execution owns the run
│   └── CancelledByUserError     the job was cancelled
├── ChannelUnreachableError      the database's functions don't answer, or refuse the key
├── DatasetError
│   ├── DatasetUnreachableError  it can't be downloaded
│   ├── DatasetChangedError      it is not the file that was checked
│   └── DatasetInvalidError      there is nothing to train on, or there are too many bad lines
├── BaseModelError
│   ├── BaseModelUnknownError    there is no such model, or it can't be used
│   ├── BaseModelUnreachableError  it could not be downloaded
│   └── BaseModelMismatchError   its files are damaged, or of another model or revision
├── InitAdapterError             the earlier adapter with which the training begins
│   ├── InitAdapterUnreachableError  it can't be downloaded
│   └── InitAdapterUnusableError  its files are damaged, or don't fit the job
├── ResourceError
│   ├── GpusMissingError         the job asks for more GPUs than the machine has
│   ├── DoesNotFitError          the memory plan needs more than the GPU has
│   ├── OutOfMemoryError         the GPU's memory ran out while training
│   ├── DiskFullError            the disk or volume is full
│   └── VolumeMissingError       there is no network volume to fill
├── LossNotFiniteError           the loss is NaN or infinite, or has exploded
├── NothingLearnedError          the adapter would change nothing, or break the base
├── NotAppliedError              the base does not take the published files as they were trained
├── TimeLimitError               the run has used all the seconds that it may use
├── StoppedError                 the machine is taken away; the next attempt resumes from a checkpoint
├── ChildCrashedError            the training process ended without an outcome
├── ReportedError                what the process that tries the published files has found
├── UnfitError                   a check of the machine failed
├── NotServedError               the adapter can't be put where vLLM serves it from; it is published all the same
├── ExportRefusedError           an adapter can't be exported in this form, or not into this folder
└── PublishingError              the adapter is complete, but not published
    ├── ProofMissingError        its published files could not be tried on the base
    ├── GrantMissingError        the worker granted no upload in time
    ├── StorageRefusedError      the bucket takes no such file; the project's operator must change that
    ├── ArtifactTooLargeError    it has more files, or a larger manifest, than the worker takes
    └── UploadFailedError        an upload was refused or broke off
"""

from __future__ import annotations

from typing import ClassVar

from lora_contract.errands import ErrandError
from lora_contract.error_codes import ErrorCode
from lora_contract.protocol import TrainerError


class TrainingError(Exception):
    """Base class. `message` says what is wrong and where, and `hint` what to do about it; the user reads both."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_protocol(self) -> TrainerError:
        """The error as it travels to the worker, cut to the lengths that the protocol allows."""
        hint = self.hint[:2000] if self.hint else None
        return TrainerError(code=self.code, message=self.message[:2000], hint=hint)

    def as_errand_error(self) -> ErrandError:
        """The error as the answer of an errand has it."""
        return ErrandError(code=self.code, message=self.message, remedy=self.hint)


class RequestInvalidError(TrainingError):
    """The launch's input is not a request of this protocol."""

    code = ErrorCode.REQUEST_INVALID


class HyperparametersInvalidError(TrainingError):
    """A choice of the user that this base model does not allow."""

    code = ErrorCode.HYPERPARAMETERS_INVALID


class FenceLostError(TrainingError):
    """This execution may not train, or not any more."""


class SupersededError(FenceLostError):
    """Another execution owns the run."""

    code = ErrorCode.SUPERSEDED


class CancelledByUserError(FenceLostError):
    """The job was cancelled."""

    code = ErrorCode.CANCELLED


class ChannelUnreachableError(TrainingError):
    """The database's functions don't answer, or refuse the publishable key."""

    code = ErrorCode.CHANNEL_UNREACHABLE


class DatasetError(TrainingError):
    """Something is wrong with the dataset."""


class DatasetUnreachableError(DatasetError):
    """The dataset can't be downloaded."""

    code = ErrorCode.DATASET_UNREACHABLE


class DatasetChangedError(DatasetError):
    """The downloaded file is not the one that the worker checked."""

    code = ErrorCode.DATASET_CHANGED


class DatasetInvalidError(DatasetError):
    """There is nothing to train on, or there are more bad lines than `max_bad_line_share` allows."""

    code = ErrorCode.DATASET_INVALID


class BaseModelError(TrainingError):
    """Something is wrong with the base model."""


class BaseModelUnknownError(BaseModelError):
    """There is no such model, or it can't be trained here."""

    code = ErrorCode.BASE_MODEL_UNKNOWN


class BaseModelUnreachableError(BaseModelError):
    """The model's files could not be downloaded."""

    code = ErrorCode.BASE_MODEL_UNREACHABLE


class BaseModelMismatchError(BaseModelError):
    """The model's files are damaged, or belong to another model or revision than the request names."""

    code = ErrorCode.BASE_MODEL_MISMATCH


class InitAdapterError(TrainingError):
    """Something is wrong with the earlier adapter with which the training begins."""


class InitAdapterUnreachableError(InitAdapterError):
    """The adapter can't be downloaded, or is not the one that the worker found: it was replaced."""

    code = ErrorCode.INIT_ADAPTER_UNREACHABLE


class InitAdapterUnusableError(InitAdapterError):
    """The adapter's files are damaged, or it has another base, rank or other shape than the job."""

    code = ErrorCode.INIT_ADAPTER_UNUSABLE


class ResourceError(TrainingError):
    """The machine has too little of something."""


class GpusMissingError(ResourceError):
    """The job asks for more GPUs than the machine has."""

    code = ErrorCode.DOES_NOT_FIT


class DoesNotFitError(ResourceError):
    """The memory plan needs more than the GPU has."""

    code = ErrorCode.DOES_NOT_FIT


class OutOfMemoryError(ResourceError):
    """The GPU's memory ran out while training."""

    code = ErrorCode.OUT_OF_MEMORY


class DiskFullError(ResourceError):
    """The disk or the network volume is full."""

    code = ErrorCode.DISK_FULL


class VolumeMissingError(ResourceError):
    """No network volume is mounted: what an errand downloads would be lost with the container."""

    code = ErrorCode.VOLUME_MISSING


class LossNotFiniteError(TrainingError):
    """The loss became NaN or infinite, or exploded."""

    code = ErrorCode.LOSS_NOT_FINITE


class NothingLearnedError(TrainingError):
    """The saved adapter consists of zeros, changes no answer, or contains values that are not finite."""

    code = ErrorCode.NOTHING_LEARNED


class NotAppliedError(TrainingError):
    """The base's modules don't take the adapter's published files, or not as they were trained."""

    code = ErrorCode.NOT_APPLIED


class TimeLimitError(TrainingError):
    """The run has used all the seconds that it may use, in all its executions."""

    code = ErrorCode.TIME_LIMIT


class StoppedError(TrainingError):
    """The machine is taken away. The next attempt resumes from the last checkpoint."""

    code = ErrorCode.INTERRUPTED


class ChildCrashedError(TrainingError):
    """The training process ended without an outcome."""

    code = ErrorCode.CHILD_CRASHED


class ReportedError(TrainingError):
    """What the process that tries the published files has found wrong, under its own code."""

    def __init__(self, reported: TrainerError) -> None:
        super().__init__(reported.message, reported.hint)
        self._reported = reported

    def as_protocol(self) -> TrainerError:
        """The error as that process has written it."""
        return self._reported


class UnfitError(TrainingError):
    """A check of the machine failed: no training should begin on it."""

    code = ErrorCode.UNFIT


class NotServedError(TrainingError):
    """The adapter can't be put into the folder that vLLM serves from, or removed from it. No training fails for it."""


class ExportRefusedError(TrainingError):
    """The adapter can't be exported in this form, onto this base or into this folder."""

    code = ErrorCode.EXPORT_REFUSED


class PublishingError(TrainingError):
    """The adapter is complete on the volume, but not in the bucket. The next attempt publishes it."""


class ProofMissingError(PublishingError):
    """The process that tries the published files on the base could not do so; the next attempt does."""

    code = ErrorCode.PROOF_MISSING


class GrantMissingError(PublishingError):
    """The worker granted no upload within `grant_wait_seconds`."""

    code = ErrorCode.GRANT_MISSING


class StorageRefusedError(PublishingError):
    """The bucket or the project takes no file of this size or type, or there is no bucket.

    `too_many_bytes` is the size of the refused file, if its size was the reason.
    """

    code = ErrorCode.STORAGE_REFUSED

    def __init__(self, message: str, hint: str | None = None, *, too_many_bytes: int | None = None) -> None:
        super().__init__(message, hint)
        self.too_many_bytes = too_many_bytes

    def as_protocol(self) -> TrainerError:
        """The error with the refused size: the worker launches the job again only when the bucket takes that size."""
        return super().as_protocol().model_copy(update={"too_many_bytes": self.too_many_bytes})


class ArtifactTooLargeError(PublishingError):
    """It has more files than can be published, or its list of files or its manifest is too large to be read."""

    code = ErrorCode.ARTIFACT_TOO_LARGE


class UploadFailedError(PublishingError):
    """An upload was refused, or broke off too often."""

    code = ErrorCode.UPLOAD_FAILED
