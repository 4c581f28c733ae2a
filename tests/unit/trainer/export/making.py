"""Tiny bases and adapters with values, as they lie in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.bases import Base
from lora_trainer.models.expert_lora import experts_with_lora, publish_by_expert
from lora_trainer.models.loading import attach_lora
from sandbox.tiny_architectures import tiny_config

RANK = 8


def make_base(folder: Path, architecture: str, *, shard: str = "400KB", dtype: torch.dtype = torch.bfloat16) -> Base:
    """A base of random values, in several files."""
    torch.manual_seed(0)
    config = tiny_config(architecture, vocab_size=256, eos_token_id=1, pad_token_id=0)
    if architecture != "qwen3_next":  # its fourth layer is the first with full attention
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder, max_shard_size=shard)
    return Base("org/base", None, folder)


def make_adapter(folder: Path, base: Base, **chosen: Any) -> Any:
    """An adapter as a training publishes it, with random values. Returns the model that has it, in float32."""
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    lora = attach_lora(model, Hyperparameters(rank=RANK, **chosen)).model
    chance = torch.Generator().manual_seed(3)
    for name, weight in sorted(lora.named_parameters()):
        if "lora_magnitude" in name:
            weight.data *= 1 + 0.05 * torch.randn(weight.shape, generator=chance)
        elif "lora_" in name:
            weight.data.normal_(0, 0.02, generator=chance)
        weight.data = weight.data.bfloat16().to(weight.dtype)
    lora.peft_config["default"].base_model_name_or_path = base.name
    lora.save_pretrained(str(folder), save_embedding_layers=False)
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)
    if experts := experts_with_lora(lora):
        publish_by_expert(weights, folder / "adapter_config.json", experts)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return lora.eval()


def change_config(folder: Path, **changes: Any) -> None:
    """Change keys of an adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pack_experts(base: Base) -> None:
    """Write the base's files anew, with the experts of a layer in one tensor, as in memory."""
    tensors = {name: tensor for file in base.folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    packed = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    layers = {name.split(".experts.")[0] for name in tensors if ".experts." in name}
    for layer in layers:
        count = len({name.split(".")[5] for name in tensors if name.startswith(f"{layer}.experts.")})
        gate, up, down = (
            torch.stack([tensors[f"{layer}.experts.{number}.{name}_proj.weight"] for number in range(count)])
            for name in ("gate", "up", "down")
        )
        packed[f"{layer}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        packed[f"{layer}.experts.down_proj"] = down
    for file in base.folder.glob("*.safetensors*"):
        file.unlink()
    save_file(packed, base.folder / "model.safetensors", metadata={"format": "pt"})
