"""What the handler tells its child process, and what the child leaves behind.

The child loads models, possibly with their own code, so it gets the job without the run's token, the
signed URL or any key. It answers with progress on a pipe and with an outcome in a file: the file also
tells a later execution that the adapter is whole, when this one's handler died before publishing.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.protocol import FinalMetrics, Point, Summary, TrainerError

OUTCOME_NAME = "outcome.json"


class Task(BaseModel):
    """One training, complete, for the child process; travels through its standard input."""

    model_config = ConfigDict(protected_namespaces=())

    job_id: str
    run_id: str
    execution_id: str
    fingerprint: str
    """Of dataset, hyperparameters and recipe: a checkpoint with another one is foreign."""
    dataset: Path
    dataset_sha256: str
    dataset_format: str | None = None
    hyperparameters: Hyperparameters
    gpu_config: GpuConfig
    job_folder: Path
    """Shared by all executions of the job."""
    folder: Path
    """This execution's own."""
    volume: Path
    """Where base models are kept."""
    micro_batch: int | None = None
    """Rows per forward pass; None: what the plan says fits."""
    archive_name: str | None = None
    chart_points: int
    checkpoint_minutes: float
    trust_remote_code: list[str] = Field(default_factory=list)

    @property
    def artifact(self) -> Path:
        """Folder whose files are published."""
        return self.folder / "artifact"

    @property
    def checkpoints(self) -> Path:
        """Folder of this execution's checkpoints."""
        return self.folder / "checkpoints"


class Outcome(BaseModel):
    """How the child ended. `trained`: the artifact folder is whole."""

    status: Literal["trained", "failed", "stopped"]
    fingerprint: str
    error: TrainerError | None = None
    metrics: FinalMetrics = Field(default_factory=FinalMetrics)
    summary: Summary = Field(default_factory=Summary)
    points: list[Point] = Field(default_factory=list)
    next_micro_batch: int | None = None
    """Set when memory ran out and a smaller micro-batch is worth a try."""

    def write(self, folder: Path) -> None:
        """Put the outcome into `folder`, whole or not at all."""
        write_atomically(folder / OUTCOME_NAME, self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """The outcome in `folder`, or None."""
        path = folder / OUTCOME_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a crash leaves the old content or the new, never a part.

    Two executions of a job that was delivered twice may write it at the same moment: the later one's content stays.
    """
    # A name of one's own: with a shared one, the first to finish takes the other's file away from under it.
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f"{path.name}.", suffix=".part", delete=False
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
