"""Why a training ends without a result, each in the user's words.

TrainingError                    code, message, hint: becomes `protocol.TrainerError`
├── RequestInvalidError          the launch's input is not a request
├── HyperparametersInvalidError  a choice that this base model does not allow
├── FenceLostError               this execution may not go on
│   ├── SupersededError          another execution owns the run
│   └── CancelledByUserError     the job was cancelled
├── ChannelUnreachableError      the database's functions don't answer
├── DatasetError
│   ├── DatasetUnreachableError  it can't be downloaded
│   ├── DatasetChangedError      it is not the file that was checked
│   └── DatasetInvalidError      nothing to train on, or too many bad lines
├── BaseModelError
│   ├── BaseModelUnknownError    there is no such model, or it can't be used
│   ├── BaseModelUnreachableError  it could not be downloaded
│   └── BaseModelMismatchError   what lies there is another model
├── ResourceError
│   ├── DoesNotFitError          the plan needs more memory than there is
│   ├── OutOfMemoryError         the GPU's memory ran out
│   └── DiskFullError            the disk or volume is full
├── LossNotFiniteError           NaN, infinity or an exploding loss
├── NothingLearnedError          the adapter would change nothing, or break the base
├── TimeLimitError               the run's seconds are used up
├── StoppedError                 the machine goes away; a checkpoint is left for the next attempt
├── ChildCrashedError            the training process died without a word
└── PublishingError              the adapter is whole, but not published
    ├── GrantMissingError        no upload grant came
    ├── StorageRefusedError      the storage takes no such file: its operator's to mend
    ├── ArtifactTooLargeError    its files or its manifest are more than the worker takes
    └── UploadFailedError        an upload was refused or broke off
"""

from __future__ import annotations

from typing import ClassVar

from lora_contract.protocol import ErrorCode, TrainerError


class TrainingError(Exception):
    """Base of all. `message` says what is wrong and where; `hint` what to do about it."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_protocol(self) -> TrainerError:
        """The error as it travels to the worker."""
        hint = self.hint[:2000] if self.hint else None
        return TrainerError(code=self.code, message=self.message[:2000], hint=hint)


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
    """Nothing to train on, or more bad lines than allowed."""

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
    """What lies there is another model or revision than asked for."""

    code = ErrorCode.BASE_MODEL_MISMATCH


class ResourceError(TrainingError):
    """The machine has too little of something."""


class DoesNotFitError(ResourceError):
    """The memory plan needs more than the machine has."""

    code = ErrorCode.DOES_NOT_FIT


class OutOfMemoryError(ResourceError):
    """The GPU's memory ran out while training."""

    code = ErrorCode.OUT_OF_MEMORY


class DiskFullError(ResourceError):
    """The disk or the network volume is full."""

    code = ErrorCode.DISK_FULL


class LossNotFiniteError(TrainingError):
    """The loss became NaN or infinite, or exploded."""

    code = ErrorCode.LOSS_NOT_FINITE


class NothingLearnedError(TrainingError):
    """The adapter as it was saved consists of zeros, or of what are no numbers."""

    code = ErrorCode.NOTHING_LEARNED


class TimeLimitError(TrainingError):
    """The seconds that the run may use are over."""

    code = ErrorCode.TIME_LIMIT


class StoppedError(TrainingError):
    """The machine goes away. What was trained so far lies in a checkpoint."""

    code = ErrorCode.INTERRUPTED


class ChildCrashedError(TrainingError):
    """The training process ended without saying why."""

    code = ErrorCode.CHILD_CRASHED


class PublishingError(TrainingError):
    """The adapter is whole and on the volume, but not in the bucket."""


class GrantMissingError(PublishingError):
    """No upload grant came within the time set."""

    code = ErrorCode.GRANT_MISSING


class StorageRefusedError(PublishingError):
    """The bucket or the project takes no file of this size or type, or there is no bucket."""

    code = ErrorCode.STORAGE_REFUSED

    def __init__(self, message: str, hint: str | None = None, *, too_many_bytes: int | None = None) -> None:
        super().__init__(message, hint)
        self.too_many_bytes = too_many_bytes

    def as_protocol(self) -> TrainerError:
        """The error with the size that was refused, so that no launch is paid for before it is taken."""
        return super().as_protocol().model_copy(update={"too_many_bytes": self.too_many_bytes})


class ArtifactTooLargeError(PublishingError):
    """Its files are too many, or the words about them too long, for what reads them."""

    code = ErrorCode.ARTIFACT_TOO_LARGE


class UploadFailedError(PublishingError):
    """An upload was refused, or broke off too often."""

    code = ErrorCode.UPLOAD_FAILED
