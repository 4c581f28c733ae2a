"""Where a run's files go in the bucket."""

from __future__ import annotations

from dataclasses import dataclass

from lora_worker.database.rows import Run

STAGING = "uploads/"
"""The one folder that upload URLs open, with a folder for each run in it. No user may read there."""

_ARCHIVE_NAME = "adapter.tar.gz"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a run's trainer uploads, and where the worker keeps what it has verified."""

    prefix: str
    """The run's own folder among its user's; the run's id is the artifact's id. No upload URL opens it."""
    staging: str
    """The run's folder among the uploads."""
    archive: str | None = None
    """Where the newer queue's readers look for the whole adapter as one file. It is the job's, not the run's:
    each attempt writes over the former's."""

    @classmethod
    def of(cls, run: Run) -> Places:
        """The places of a run."""
        archive = f"adapters/{run.job_id}.tar.gz" if run.queue == "pipeline_training_jobs" else None
        return cls(f"{run.user_id}/{run.id}/", f"{STAGING}{run.id}/", archive)

    @property
    def archive_name(self) -> str | None:
        """The archive's path in the manifest; None where nobody reads one."""
        return _ARCHIVE_NAME if self.archive else None

    def staged(self, path: str) -> str:
        """Where the trainer uploads the file that the manifest lists as `path`."""
        return self.staging + path

    def at(self, path: str) -> str:
        """Where that file is kept."""
        return self.archive if self.archive and path == _ARCHIVE_NAME else self.prefix + path
