"""The paths of a run's files in the bucket for adapters."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from lora_worker.database.rows import Run

STAGING = "uploads/"
"""The folder into which all trainers upload, each into the folder of its run. Users may not read it."""

_ARCHIVE_NAME = "adapter.tar.gz"


def run_folder(user_id: UUID, run_id: UUID) -> str:
    """Return the final folder of a run's files, with a slash at its end."""
    return f"{user_id}/{run_id}/"


@dataclass(frozen=True, slots=True)
class ArtifactPaths:
    """The folder into which a run's trainer uploads, and the one to which the worker copies the verified files."""

    prefix: str
    """The final folder, `<user_id>/<run_id>/`; the run's id is also the artifact's id. No upload URL is valid here."""
    staging: str
    """The folder for the trainer's uploads."""
    archive: str | None = None
    """The path where readers of the newer queue look for the adapter as one file. It belongs to the job, not to the
    run, so each attempt replaces the file of the one before."""

    @classmethod
    def of(cls, run: Run) -> ArtifactPaths:
        """Return the paths for a run."""
        return cls.of_run(queue=run.queue, job_id=run.job_id, user_id=run.user_id, run_id=run.id)

    @classmethod
    def of_run(cls, *, queue: str, job_id: UUID, user_id: UUID, run_id: UUID) -> ArtifactPaths:
        """Return the paths for a run of which only these ids are known."""
        archive = f"adapters/{job_id}.tar.gz" if queue == "pipeline_training_jobs" else None
        return cls(run_folder(user_id, run_id), f"{STAGING}{run_id}/", archive)

    @property
    def archive_name(self) -> str | None:
        """Return the archive's path in the manifest; None if the run's queue has no readers of an archive."""
        return _ARCHIVE_NAME if self.archive else None

    def staged(self, path: str) -> str:
        """Return where the trainer uploads the file that the manifest lists as `path`."""
        return self.staging + path

    def final(self, path: str) -> str:
        """Return where the worker stores the verified copy of that file."""
        return self.archive if self.archive and path == _ARCHIVE_NAME else self.prefix + path
