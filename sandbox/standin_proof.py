"""A process that tries no files, for tests of everything around the trial of an adapter.

With the environment of `sandbox.standin.standin_env`, the trainer's handler starts this module instead of
`lora_trainer.proof.process`. It finds every adapter applied, writes the archive and then the proof, as the real process
does. Like `sandbox.standin` it writes plain JSON, because importing the models would take ten times as long.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from lora_trainer.run.orphans import end_with_the_handler
from sandbox.standin import write_json_atomically


def applied(sha256: str) -> dict[str, Any]:
    """What a trial finds of an adapter with this sha256 that is applied: the JSON of `Application`."""
    return {
        "adapter_sha256": sha256,
        "modules": 28,
        "tensors": 56,
        "prompts": 10,
        "differing": 10,
        "precision": "bf16",
        "base_unchanged": True,
        "trained_loss": 1.25,
        "served_loss": 1.255,
        "served_precision": "bf16",
    }


def try_nothing(task: dict[str, Any]) -> None:
    """Complete the artifact and write the proof of one task: the JSON of `lora_trainer.run.proof_task.ProofTask`."""
    folder = Path(task["folder"])
    artifact = folder / "artifact"
    if task["archive_name"] is not None:
        from lora_trainer.artifact.archive import write_archive

        write_archive(artifact, artifact / task["archive_name"])
    weights = (artifact / "adapter_model.safetensors").read_bytes()
    found = {"application": applied(hashlib.sha256(weights).hexdigest()), "notes": []}
    write_json_atomically(folder / "proof.json", found)


if __name__ == "__main__":
    told = json.loads(sys.stdin.readline())
    end_with_the_handler()
    try_nothing(told)
