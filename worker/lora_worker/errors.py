"""The worker's exceptions.

WorkerError
├── SettingsError         a setting is missing or wrong; names the variable (exit 2)
├── ArgumentError         an argument of a command is wrong; names the argument (exit 2)
│   └── DeploymentFileError       the file of a deployment is wrong; names its line and key
├── DeploymentError       what exists at the GPU cloud is not what a deployment can be made of (exit 1)
├── PortTakenError        the port of the health endpoints or of the dashboard can't be opened (exit 1)
├── GpuServerError        the GPU server can't be started here (exit 1)
├── ServerBusyError       the GPU server takes no more jobs now
├── ServiceError          a call to another service failed
│   ├── ServiceUnavailableError   a retry may succeed: time-out, refused connection, status 5xx or 429
│   │   └── CreationInDoubtError  no answer to the creation of a resource: it may exist, and has to be looked for
│   ├── ServiceRefusedError       a retry will fail, too: other 4xx; the key, the request or the object is wrong
│   │   ├── ObjectMissingError    the object is not in the bucket
│   │   ├── ModelUnknownError     nobody at the inference endpoint has this name
│   │   ├── ValueRefusedError     a column of the database can't hold a value
│   │   └── LaunchRefusedError    the launcher takes no such request as this run's
│   ├── AnswerBrokenError         a model's answer broke off half-way
│   ├── LaunchInDoubtError        the launcher may or may not have accepted a launch
│   └── SchemaMismatchError       the worker's SQL functions have a version that this worker does not know
│       └── SchemaMissingError    the functions are missing in the database
│           └── SchemaCacheError  the functions exist, but the REST API has not reloaded its schema since
├── PreflightError        the job can't be trained as it is; permanent; the text is for the user
│   └── DatasetPendingError       the job's dataset is still being uploaded or validated; the job waits
├── ArtifactError         the uploaded files are not those that the manifest lists
│   ├── ProofMissingError         their manifest does not say that the adapter was tried on its base
│   └── ProofRefusedError         what it says of that is of another adapter, or shows that nothing is applied
├── ExportError           the trainer could not export an adapter; the text is its sentence (exit 1)
├── PromotionRefusedError an alias can't lead to this version, or somebody else has moved it (exit 1)
├── PassIncompleteError   a single pass (`run --once`) could not do all of its work (exit 1)
└── LeaseLostError        another worker has taken over the run; this worker must write nothing more for it
"""

from __future__ import annotations


class WorkerError(Exception):
    """Base of all exceptions of the worker. The text is a sentence that may be shown to users and operators."""


class SettingsError(WorkerError):
    """A setting is missing or wrong."""


class ArgumentError(WorkerError):
    """An argument of a command is wrong."""


class DeploymentFileError(ArgumentError):
    """The file that describes a deployment is wrong. The text names its line and key."""


class DeploymentError(WorkerError):
    """What exists at the GPU cloud is not what a deployment can be made of: two of one name, or a volume elsewhere."""


class PortTakenError(WorkerError):
    """The port of the health endpoints or of the dashboard can't be opened."""


class GpuServerError(WorkerError):
    """The GPU server can't be started here: its folder, its file or its trainer can't be used."""


class ServerBusyError(WorkerError):
    """The GPU server takes no more jobs now."""


class ServiceError(WorkerError):
    """A call to another service failed. `service` is its name in logs and messages."""

    def __init__(self, service: str, text: str) -> None:
        super().__init__(text)
        self.service = service


class ServiceUnavailableError(ServiceError):
    """A retry may succeed. `retry_after_seconds` is how long the service asked to wait, if it did."""

    def __init__(self, service: str, text: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(service, text)
        self.retry_after_seconds = retry_after_seconds


class CreationInDoubtError(ServiceUnavailableError):
    """No answer to the creation of a resource: it may exist. Whoever repeats the call looks for it first."""


class ServiceRefusedError(ServiceError):
    """The service refused the call, and a retry would be refused, too. `status` is the HTTP status."""

    def __init__(self, service: str, text: str, *, status: int) -> None:
        super().__init__(service, text)
        self.status = status


class ObjectMissingError(ServiceRefusedError):
    """The object is not in the bucket."""


class ModelUnknownError(ServiceRefusedError):
    """Nobody at the inference endpoint has this name."""

    def __init__(self, model: str, endpoint: str) -> None:
        text = (
            f"The endpoint {endpoint} has no model {model}: no adapter there has this name, or it was deleted, or "
            "trained on another base model than the endpoint's."
        )
        super().__init__("inference endpoint", text, status=404)


class ValueRefusedError(ServiceRefusedError):
    """A column of the database can't hold a value of the call. The same call with another value may succeed."""


class LaunchRefusedError(ServiceRefusedError):
    """The launcher takes no such request as this run's. Key and endpoint are right: no change of settings helps."""


class AnswerBrokenError(ServiceError):
    """A model's answer broke off half-way."""


class LaunchInDoubtError(ServiceError):
    """No answer to a launch: it may have been accepted.

    Either its trainer checks in, or the worker launches the run again. The fence in the database ensures that only one
    of the two trains.
    """


class SchemaMismatchError(ServiceError):
    """The worker's SQL functions in the database have a version that this worker does not know."""


class SchemaMissingError(SchemaMismatchError):
    """The worker's SQL functions are missing in the database, until somebody runs `lora-worker migrate`."""


class SchemaCacheError(SchemaMissingError):
    """The functions are in the database, but the REST API has not reloaded its schema since they were created."""


class PreflightError(WorkerError):
    """The job can't be trained as it is. The text tells the user what to change; `code` is for the row."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class DatasetPendingError(PreflightError):
    """The job's dataset is still being uploaded or validated, and the job may wait for it."""


class ArtifactError(WorkerError):
    """The files in the bucket are not those that the manifest lists. The text is for the user."""


class ProofMissingError(ArtifactError):
    """The manifest has no proof that the adapter is applied: its trainer is older than this worker."""


class ProofRefusedError(ArtifactError):
    """The manifest's proof is of other weights, or shows that the adapter changes nothing."""


class ExportError(WorkerError):
    """The trainer refused to export an adapter, or failed to. The text is what it said."""


class PromotionRefusedError(WorkerError):
    """An alias can't lead to this version, or somebody else has moved it. The text says why, and what to do."""


class PassIncompleteError(WorkerError):
    """A single pass (`run --once`) could not do all of its work."""


class LeaseLostError(WorkerError):
    """Another worker has taken over the run, so this worker must write nothing more for it."""
