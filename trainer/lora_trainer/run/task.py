"""What the handler sends to its child process, and what the child writes when it ends.

The child loads models, which may bring code of their own. So it gets the job without the run's token, the signed URL
or any key. It answers with progress on a pipe and with an outcome in a file. If this execution's handler dies before
it has published the adapter, a later execution learns from that file that the adapter is complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_contract.application import Application
from lora_contract.evaluation import Evaluation
from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.protocol import FinalMetrics, Point, Summary, TrainerError
from lora_contract.serving import Serving
from lora_trainer.run.files import write_atomically

OUTCOME_NAME = "outcome.json"


class InitAdapter(BaseModel):
    """The earlier adapter with which a training begins; its files are in `Task.init_adapter_folder`."""

    id: str
    base_model: str
    base_revision: str | None = None


class Task(BaseModel):
    """Everything that the child process must know for one training. It travels through its standard input."""

    model_config = ConfigDict(protected_namespaces=())

    job_id: str
    run_id: str
    execution_id: str
    fingerprint: str
    """Of dataset, hyperparameters and recipe. A checkpoint with another fingerprint must not be resumed."""
    dataset: Path
    dataset_sha256: str
    hyperparameters: Hyperparameters
    gpu_config: GpuConfig
    gpus: list[str | None] = Field(default_factory=list)
    """The GPUs that train together, as CUDA_VISIBLE_DEVICES names them; None: the CPU. Empty: the first of them."""
    init_adapter: InitAdapter | None = None
    job_folder: Path
    """The folder that all executions of the job share."""
    folder: Path
    """The folder of this execution, inside of `job_folder`."""
    volume: Path
    """The folder with the base models."""
    shard_base: bool = False
    """Whether several GPUs shard the base even where it fits each, as a trial of that asks."""
    micro_batch: int | None = None
    """The most rows per forward pass; None: as many as the memory plan allows."""
    recompute: bool | None = None
    """Whether the backward pass computes activations again, which saves memory; None: if the memory plan needs it."""
    quantization: Literal["nf4", "bf16"] | None = None
    """How the base model is held, after memory ran out with it in bf16; None: as the hyperparameters say."""
    compile: Literal["off", "auto", "on", "failed"] = "off"
    """Whether layers are compiled; `failed`: an earlier process of this execution could not compile them."""
    archive_name: str | None = None
    chart_points: int
    checkpoint_minutes: float
    trust_remote_code: list[str] = Field(default_factory=list)
    quantised_cache_gb: float = 0
    """Gigabytes (10⁹ bytes) that quantised copies of base models may take on the volume; 0: there are none."""

    @property
    def artifact(self) -> Path:
        """The folder whose files are published."""
        return self.folder / "artifact"

    @property
    def init_adapter_folder(self) -> Path:
        """The folder with the files of the earlier adapter, if there is one."""
        return self.folder / "init_adapter"

    @property
    def checkpoints(self) -> Path:
        """The folder of this execution's checkpoints."""
        return self.folder / "checkpoints"


class Retry(BaseModel):
    """How another try of a training is made: the values of these fields of its `Task`."""

    micro_batch: int | None = None
    recompute: bool | None = None
    quantization: Literal["nf4", "bf16"] | None = None
    compile: Literal["off", "auto", "on", "failed"] = "off"


class Outcome(BaseModel):
    """How the child ended. With the status `trained`, the artifact's folder is complete."""

    status: Literal["trained", "failed", "stopped"]
    fingerprint: str
    error: TrainerError | None = None
    metrics: FinalMetrics = Field(default_factory=FinalMetrics)
    summary: Summary = Field(default_factory=Summary)
    points: list[Point] = Field(default_factory=list)
    evaluation: Evaluation | None = None
    """What base and adapter found of unseen text; None of a training that did not measure it."""
    application: Application | None = None
    """What the proof found; None until it was made."""
    serving: Serving | None = None
    """Where vLLM finds the adapter; None where it was not put there."""
    retry: Retry | None = None
    """Set if the training failed for want of memory or a compiler, and another try can do with less or without."""

    def write(self, folder: Path) -> None:
        """Write the outcome into `folder`, atomically."""
        write_atomically(folder / OUTCOME_NAME, self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """The outcome in `folder`; None if there is none, or none that can be read."""
        path = folder / OUTCOME_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
