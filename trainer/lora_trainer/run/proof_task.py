"""What the handler sends to the process that tries the published files, and what that process writes when it ends.

The proof stands beside the training's outcome, in the folder of the execution that trained. So a later execution that
has only to upload the files finds it, and does not try them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_contract.application import Application
from lora_contract.hyperparameters import Hyperparameters
from lora_contract.protocol import ADAPTER_FILES, TrainerError
from lora_trainer.run.files import sha256_of, write_atomically

PROOF_NAME = "proof.json"
CONFIG_NAME, WEIGHTS_NAME = ADAPTER_FILES


class ProofTask(BaseModel):
    """Everything that the process must know. It travels through its standard input."""

    model_config = ConfigDict(protected_namespaces=())

    execution_id: str
    """The execution that tries the files. It trained them, or an earlier one did."""
    job_folder: Path
    """The folder that all executions of the job share."""
    folder: Path
    """The folder of the execution that trained."""
    volume: Path
    """The folder with the base models."""
    base_revision: str | None = None
    """The revision of the base on which the adapter was trained."""
    hyperparameters: Hyperparameters
    archive_name: str | None = None
    """The path of the archive, relative to the artifact's folder; without one no archive is written."""
    trust_remote_code: list[str] = Field(default_factory=list)
    quantised_cache_gb: float = 0
    """Gigabytes (10⁹ bytes) that quantised copies of base models may take on the volume; 0: there are none."""
    precision: Literal["nf4"] | None = None
    """How the base is held after a first try failed; None: not quantised, where memory and time allow it."""
    trained_in_4_bits: bool = False
    """Whether the training held the base in 4 bits, so that it can be had again without reading all of its files."""
    gpus: int = 1
    """How many of the visible GPUs have trained, over which a base may be spread that is too large for the first."""
    train_seconds: float = 0
    """How long the training took, of which the trial may take a small share."""

    @property
    def artifact(self) -> Path:
        """The folder whose files are published."""
        return self.folder / "artifact"


class Proof(BaseModel):
    """How the process ended. With an `application` the artifact's folder is complete, its archive included."""

    application: Application | None = None
    notes: list[str] = Field(default_factory=list)
    """Sentences for the user about what the trial found."""
    error: TrainerError | None = None
    """Why there is no proof."""

    def write(self, folder: Path) -> None:
        """Write it into `folder`, atomically."""
        write_atomically(folder / PROOF_NAME, self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> Proof | None:
        """The proof in `folder`; None if there is none, or none that can be read."""
        try:
            return cls.model_validate_json((folder / PROOF_NAME).read_bytes())
        except (OSError, ValueError):
            return None


def kept_proof(folder: Path) -> Proof | None:
    """The proof in `folder`, where it is of the very weights that are in the artifact now; None where it is not."""
    proof = Proof.read(folder)
    if proof is None or proof.application is None:
        return None
    try:
        same = sha256_of(folder / "artifact" / WEIGHTS_NAME) == proof.application.adapter_sha256
    except OSError:
        return None
    return proof if same else None
