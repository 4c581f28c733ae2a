"""What a training method says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.data.chat import Chat
from lora_trainer.data.rows import TrainingData
from lora_trainer.recipe.steps import StepTrainer

ReadDataset: TypeAlias = Callable[[Path, Chat, Hyperparameters], TrainingData]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to learn from a dataset."""

    read: ReadDataset
    """Turns the dataset's file into items. Raises `DatasetInvalidError` where nothing can be learned."""
    trainer: type[StepTrainer]
    """Learns from these items: it says which rows an item has, and what the loss is."""
    rows_of_item: int
    """The most rows that an item has in a forward pass; each has at most `max_length` tokens."""
    learns: str
    """What the adapter was trained on, for the model card: the end of a sentence."""
    settings: frozenset[str]
    """Hyperparameters of this method that not all have."""
    unit: str
    """What `batch_size` counts, for people: a noun without article."""
    loss_unit: str
    """The unit of the loss, for people."""
