"""The training methods by name.

A method is what it makes of a dataset, and the trainer that learns from that. All else (base model, memory, LoRA,
checkpoints, curve, artifact) is the same for every method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.data.chat import Chat
from lora_trainer.data.rows import TrainingData, prepare_data
from lora_trainer.models.loading import Lora
from lora_trainer.recipe.sft import StepTrainer, TrainingBatches, build_trainer

ReadDataset: TypeAlias = Callable[[Path, Chat, Hyperparameters], TrainingData]
BuildTrainer: TypeAlias = Callable[[Lora, PreTrainedTokenizerBase, TrainingBatches, SFTConfig], StepTrainer]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to learn from a dataset."""

    read: ReadDataset
    """Turns the dataset's file into tokenised rows. Raises `DatasetInvalidError` where nothing can be learned."""
    build_trainer: BuildTrainer
    """Builds the trainer over batches of these rows, with LoRA in fp32."""


METHODS: Mapping[str, Method] = {"sft": Method(prepare_data, build_trainer)}
"""By the name that `Hyperparameters.method` chooses."""
