"""From a base on the disk to its first step: `python -m benchmarks.gpu.loading make|load <settings> <folder>`.

`make` writes a base of random weights. `load` loads it in a new process, as a job does, from its quantised copy if
there is one, and writes how long that took to `<folder>/answer.json`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ANSWER = "answer.json"


@dataclass(frozen=True)
class LoadMeasurement:
    """What is loaded, and what its first step learns."""

    model: str
    row_tokens: int = 4096
    example_tokens: int = 1024
    tiny: bool = False


def read_answer(folder: Path) -> dict[str, Any]:
    """What the last `load` found."""
    return dict(json.loads((folder / _ANSWER).read_text()))


def _config(asked: LoadMeasurement) -> Any:
    from benchmarks.gpu.speed import TINY
    from benchmarks.gpu.weights import real_config

    return real_config(asked.model, **(TINY if asked.tiny else {}))


def make(asked: LoadMeasurement, folder: Path) -> None:
    """Write a base with random weights in bf16, one tensor at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.gpu.weights import random_weight
    from lora_trainer.models.weight_files import write_header, write_tensor

    config = _config(asked)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shapes = {name: parameter.detach() for name, parameter in bare.named_parameters()}
    base = _base_folder(folder)
    base.mkdir(parents=True)
    config.save_pretrained(base)
    with (base / "model.safetensors").open("wb", buffering=0) as file:
        write_header(file, shapes)
        for seed, (name, shape) in enumerate(shapes.items()):
            for _ in write_tensor(file, random_weight(name, shape.shape, device, torch.bfloat16, seed)):
                pass


def load(asked: LoadMeasurement, folder: Path) -> None:
    """Load as a job does, train one step, and write down when each was done."""
    begun = _process_began()
    import lora_trainer.recipe.train  # noqa: F401 all that the training process imports

    imported = time.time()
    import torch

    from benchmarks.gpu.speed import Measurement, make_trainer
    from lora_contract.hyperparameters import Hyperparameters
    from lora_trainer.models.attention import choose_attention
    from lora_trainer.models.bases import Base
    from lora_trainer.models.fused import fuse
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.models.loading import attach_lora, load_config, load_model
    from lora_trainer.models.quantised_cache import QuantisedCache

    logging.basicConfig(level=logging.INFO)
    base = Base("random weights", None, _base_folder(folder))
    hardware, config = detect_hardware(), load_config(base)
    attention = choose_attention(config, hardware)
    parameters = Hyperparameters(max_length=asked.row_tokens, batch_size=64)
    from_copy = _copy_bytes(folder) > 0
    with QuantisedCache(folder, 10**13) as cache:
        model = load_model(base, config, hardware, attention=attention, cache=cache)
        loaded = time.time()
        lora = attach_lora(model, parameters)
        if hardware.is_gpu:
            fuse(lora.model)
        step = Measurement(
            asked.model,
            row_tokens=asked.row_tokens,
            example_tokens=asked.example_tokens,
            rows_per_step=1,
            warm_up=0,
            steps=1,
        )
        with tempfile.TemporaryDirectory() as checkpoints:
            make_trainer(step, lora, parameters, hardware, Path(checkpoints)).train()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        stepped = time.time()
        cache.wait()
        written = time.time()
    found = {
        "from_copy": from_copy,
        "import_seconds": imported - begun,
        "load_seconds": loaded - imported,
        "first_step_seconds": stepped - loaded,
        "total_seconds": stepped - begun,
        "copy_late_seconds": written - stepped,
        "base_bytes": _bytes_of(_base_folder(folder)),
        "copy_bytes": _copy_bytes(folder),
    }
    (folder / _ANSWER).write_text(json.dumps(found))


def _process_began() -> float:
    """When this process began, in seconds since 1970: the interpreter's start counts, too."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    age = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def forget_pages(folder: Path) -> None:
    """Have the kernel drop what it holds of these files in main memory, as another machine would hold nothing."""
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _base_folder(folder: Path) -> Path:
    return folder / "base"


def _copy_bytes(folder: Path) -> int:
    from lora_trainer.models.copies_on_volume import FOLDER

    return _bytes_of(folder / FOLDER)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def main(arguments: list[str]) -> int:
    """Carry out one of the two."""
    action, settings, folder = arguments
    asked = LoadMeasurement(**json.loads(settings))
    {"make": make, "load": load}[action](asked, Path(folder))
    return 0


def settings_of(asked: LoadMeasurement) -> str:
    """The measurement as an argument of `main`."""
    return json.dumps(dataclasses.asdict(asked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
