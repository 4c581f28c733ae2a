"""Writes the folder that is published: the adapter in PEFT's layout, its README, logs and configuration."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file

from lora_contract.curve import format_log
from lora_contract.protocol import LOG_NAME, Point
from lora_trainer.artifact.evaluation import write_evaluation
from lora_trainer.artifact.generation import save_generation_config
from lora_trainer.artifact.model_card import ArtifactFacts, model_card
from lora_trainer.errors import NothingLearnedError
from lora_trainer.models.expert_lora import experts_with_lora, publish_by_expert
from lora_trainer.run.volume import naming_full_disks

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WEIGHTS_NAME = "adapter_model.safetensors"
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "tokenizers")


def save_artifact(
    folder: Path,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: ArtifactFacts,
    *,
    points: list[Point],
) -> None:
    """Write every file of the artifact into `folder`, but for what `lora_trainer.proof` adds: answers and the archive.

    Rounds the model's trained weights to bf16.

    Raises:
        DiskFullError: there is no room for the files.
        NothingLearnedError: the adapter would change nothing, or holds values that are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with naming_full_disks(folder):
        round_adapter(model)
        # Not before: with a model name of the hub in its config, PEFT would ask the hub at each checkpoint.
        for config in model.peft_config.values():
            config.base_model_name_or_path, config.revision = facts.base_name, facts.base_revision
        # Embeddings are never trained. To find out whether they were, PEFT would ask the hub for the base's files.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        _store_in_bf16(folder / _WEIGHTS_NAME)
        if experts := experts_with_lora(model):
            publish_by_expert(folder / _WEIGHTS_NAME, folder / "adapter_config.json", experts)
        check_weights(folder / _WEIGHTS_NAME)
        tokenizer.save_pretrained(folder)
        # PEFT promises a torch module only; it wraps the transformers model that was loaded.
        base = cast("PreTrainedModel", model.get_base_model())
        save_generation_config(folder, base, tokenizer, facts.stop)
        describe_artifact(folder, facts)
        _write(folder / LOG_NAME, format_log(points))
        _write(folder / "split.json", json.dumps(facts.split, indent=2))
        _write(folder / "environment.json", json.dumps(environment(facts, base.config.model_type), indent=2))
        draw_loss(points, folder / "loss.png", unit=facts.loss_unit)


def describe_artifact(folder: Path, facts: ArtifactFacts) -> None:
    """Write the model card and the figures, in place of those that a save before the measurement has left.

    Raises:
        DiskFullError: there is no room for the files.
    """
    with naming_full_disks(folder):
        _write(folder / "README.md", model_card(facts))
        if facts.evaluation is not None:
            write_evaluation(folder, facts.evaluation)


def round_adapter(model: torch.nn.Module) -> None:
    """Round the adapter's weights to bf16, the type in which they are saved, but keep their present type.

    Then a test of the model in memory tests what will be served.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)


def _store_in_bf16(weights: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def check_weights(weights: Path) -> None:
    """Refuse a saved adapter that is not worth publishing. `weights` is its safetensors file.

    Raises:
        NothingLearnedError: all its B matrices are zero, so that it adds nothing to the base model, or some of its
            values are not finite.
    """
    saved = load_file(weights)
    if broken := sum(not bool(tensor.isfinite().all()) for tensor in saved.values()):
        raise NothingLearnedError(
            f"{broken} of the adapter's {len(saved)} matrices hold values that are no numbers.",
            "Try a learning rate a third as high, or a longer warm-up (warmup_steps).",
        )
    if not any(bool(tensor.any()) for name, tensor in saved.items() if ".lora_B" in name):
        raise NothingLearnedError(
            "The adapter is all zeros, so it would answer exactly as the base does.",
            "Train for more steps (epochs, max_steps), or at a higher learning_rate.",
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def environment(facts: ArtifactFacts, architecture: str) -> dict[str, Any]:
    """What is needed to reproduce the training: package versions, GPU, driver, seed, base model, dataset.

    `architecture` is the base's, as transformers calls it. An export reads it here, where the base itself is not.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "gpu": facts.gpu_type,
        "gpus": facts.gpus,
        "driver": facts.driver,
        "seed": facts.parameters.seed,
        "base_model": facts.base_name,
        "base_architecture": architecture,
        "base_revision": facts.base_revision,
        "dataset_sha256": facts.dataset_sha256,
        "init_adapter": facts.init_adapter,
    }


def draw_loss(points: list[Point], path: Path, *, unit: str) -> None:
    """Write the loss curve as a PNG file to `path`. `unit` is that of the loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=f"loss ({unit})", title="Training loss")
    for label, name, style in (("training", "training_loss", "-"), ("validation", "validation_loss", "o--")):
        curve = [(p.step, value) for p in points if (value := getattr(p, name)) is not None]
        if curve:
            axes.plot(*zip(*curve, strict=True), style, label=label, markersize=4)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
