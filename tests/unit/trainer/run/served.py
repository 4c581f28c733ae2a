"""Small adapters in PEFT's layout, and what a server makes of the folder that they are served from."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from sandbox.inference.resolver import find_adapter

BASE = "org/base"
MODULE = "base_model.model.model.layers.0.self_attn.{}_proj.lora_{}.weight"


def make_adapter(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA", "base_model_name_or_path": BASE, "r": 4, "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        MODULE.format(module, part): np.full(shape, value, np.float32)
        for module, width in (("q", 16), ("v", 8))
        for part, shape in (("A", (4, 8)), ("B", (width, 4)))
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def served_value(folder: Path, name: str) -> float | None:
    """What a server that has not called the name before finds under it; None: no such model."""
    found = find_adapter(folder, BASE, name)
    return None if found is None else loaded_value(found)


def loaded_value(adapter: Path) -> float:
    """The value of all weights of an adapter, read as a server reads them."""
    [value] = {
        float(value) for tensor in load_file(adapter / "adapter_model.safetensors").values() for value in tensor.flat
    }
    return value
