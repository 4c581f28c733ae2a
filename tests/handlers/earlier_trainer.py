"""The earlier trainer as RunPod sees it: its final answers; it reports no progress."""

from __future__ import annotations

import os
from typing import Any

import runpod


def handle(job: dict[str, Any]) -> dict[str, Any]:
    """The answers of app-contract 5.2; `EARLIER_FILES_URL` is where the files can be fetched."""
    given = job["input"]
    missing = [key for key in ("job_id", "dataset_url", "hyperparameters", "gpu_config") if not given.get(key)]
    missing += [key for key in ("base_model", "learning_rate", "batch_size", "epochs", "rank")
                if key not in given["hyperparameters"]]  # fmt: skip
    missing += [key for key in ("type", "count") if key not in given["gpu_config"]]
    if missing:
        return {"status": "failed", "error_message": f"Missing required field: {missing[0]}", "job_id": "x"}
    files = os.environ.get("EARLIER_FILES_URL")
    if files is None:
        return {"status": "failed", "error_message": "CUDA out of memory", "job_id": "x", "traceback": "Traceback: …"}
    names = ("adapter_model.safetensors", "adapter_config.json")
    return {
        "status": "success",
        "model_files": {name: f"{files}/{name}" for name in names},
        "model_metadata": {
            "base_model": job["input"]["hyperparameters"]["base_model"],
            "lora_rank": 8,
            "final_loss": 0.725,
            "training_time": 90,
        },
        "progress": 100,
        "current_epoch": 3,
        "current_step": 36,
    }


if __name__ == "__main__":
    runpod.serverless.start({"handler": handle})
