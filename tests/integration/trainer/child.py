"""Starts the real training process on the tiny model, and reads its messages."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_contract.protocol import Progress
from lora_trainer.run.task import Outcome, Task
from sandbox.sample_text import write_sample_dataset
from tests.processes.warm_python import WarmProcess, WarmPython

FAST = {"learning_rate": 5e-3, "batch_size": 8, "epochs": 2, "max_length": 256, "rank": 8}


def make_task(job_folder: Path, base: Path, *, dataset: Path | None = None, **changes: Any) -> Task:
    """A task of a new execution of the job, that owns the job's folder."""
    execution_id = str(uuid.uuid4())
    own = job_folder / execution_id
    own.mkdir(parents=True)
    (job_folder / "owner.json").write_text(json.dumps({"execution_id": execution_id}))
    if dataset is None:
        dataset = own / "dataset"
        write_sample_dataset(dataset, conversations=16)
    parameters = {**FAST, "base_model": str(base), **changes.pop("hyperparameters", {})}
    return Task(
        **{
            "job_id": "job",
            "run_id": "run",
            "execution_id": execution_id,
            "fingerprint": "same inputs",
            "dataset": dataset,
            "dataset_sha256": hashlib.sha256(dataset.read_bytes()).hexdigest(),
            "hyperparameters": parameters,
            "gpu_config": {},
            "job_folder": job_folder,
            "folder": own,
            "volume": base.parent,
            "chart_points": 100,
            "checkpoint_minutes": 60,
            **changes,
        }
    )


@dataclass
class Child:
    """A running training process."""

    task: Task
    process: WarmProcess
    events: Any
    seen: list[Progress] = field(default_factory=list)

    def read(self, until: Any = None) -> list[Progress]:
        """Read progress messages up to the first for which `until` holds, or to the end."""
        for line in self.events:
            self.seen.append(Progress.model_validate_json(line))
            if until is not None and until(self.seen[-1]):
                break
        return self.seen

    def finish(self) -> Outcome | None:
        """The outcome, once the process has ended."""
        self.read()
        self.events.close()
        self.process.wait()
        self.process.stdin.close()
        return Outcome.read(self.task.folder)


def start(task: Task, module: str = "lora_trainer.recipe.train", **environment: str) -> Child:
    """Start the training process as the handler does, but with its libraries loaded."""
    read_end, write_end = os.pipe()
    process = WarmPython.of("trainer").start(module, environment={**os.environ, **environment}, message_pipe=write_end)
    os.close(write_end)
    process.stdin.write(task.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    return Child(task, process, os.fdopen(read_end))


def train(task: Task, module: str = "lora_trainer.recipe.train", **environment: str) -> tuple[Outcome | None, Child]:
    """Train to the end."""
    child = start(task, module, **environment)
    return child.finish(), child
