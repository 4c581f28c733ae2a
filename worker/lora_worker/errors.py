"""The worker's exceptions.

WorkerError
├── SettingsError         a setting is missing or wrong; names the variable (exit 2)
├── PortTakenError        the port of the health endpoints can't be opened (exit 1)
├── ServiceError          another service did not do what was asked
│   ├── ServiceUnavailableError   it may later: time-outs, refused connections, 5xx, 429
│   ├── ServiceRefusedError       it will not: 4xx; the key, the request or the object is wrong
│   │   ├── ObjectMissingError    the object is not in the bucket
│   │   └── ValueRefusedError     the database can't hold a value
│   ├── LaunchInDoubtError        a launch that may or may not have been accepted
│   └── SchemaMismatchError       the database's functions are of a version that this worker does not know
│       └── SchemaMissingError    they are not there (yet)
│           └── SchemaCacheError  they are there, and REST does not know them yet
├── PreflightError        the job can't be trained as it is; permanent, in the user's words
│   └── DatasetPendingError       its dataset is still uploaded or validated; it waits for that
├── ArtifactError         what the trainer published is not what its manifest says
├── PassIncompleteError   a single pass could not do all of its work (exit 1)
└── LeaseLostError        another worker has the run now; whatever was to be written is dropped
"""

from __future__ import annotations


class WorkerError(Exception):
    """Base of all; its text is a sentence that may be shown."""


class SettingsError(WorkerError):
    """A setting is missing or wrong."""


class PortTakenError(WorkerError):
    """The port of the health endpoints can't be opened."""


class ServiceError(WorkerError):
    """Another service did not do what was asked. `service` is its name in logs and messages."""

    def __init__(self, service: str, text: str) -> None:
        super().__init__(text)
        self.service = service


class ServiceUnavailableError(ServiceError):
    """The service may answer later. `retry_after_seconds` is its own wish, when it gave one."""

    def __init__(self, service: str, text: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(service, text)
        self.retry_after_seconds = retry_after_seconds


class ServiceRefusedError(ServiceError):
    """The service answered that it will not. `status` is the HTTP status."""

    def __init__(self, service: str, text: str, *, status: int) -> None:
        super().__init__(service, text)
        self.status = status


class ObjectMissingError(ServiceRefusedError):
    """The object is not in the bucket."""


class ValueRefusedError(ServiceRefusedError):
    """The database can't hold a value of the call; with another one it would take it."""


class LaunchInDoubtError(ServiceError):
    """The launch may have been accepted: only a check-in or a second, fenced launch can tell."""


class SchemaMismatchError(ServiceError):
    """The database's schema is of a version that this worker does not know."""


class SchemaMissingError(SchemaMismatchError):
    """The worker's functions are not in the database; a migration may still bring them."""


class SchemaCacheError(SchemaMissingError):
    """The functions are in the database, and REST has not read the schema since they came."""


class PreflightError(WorkerError):
    """The job can't be trained as it is. The text tells its user what to change."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class DatasetPendingError(PreflightError):
    """The job's dataset is still being uploaded or validated, and the job may wait for it."""


class ArtifactError(WorkerError):
    """What lies in the bucket is not what the manifest says."""


class PassIncompleteError(WorkerError):
    """A single pass could not do all of its work."""


class LeaseLostError(WorkerError):
    """Another worker has the run now."""
