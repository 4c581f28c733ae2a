"""The training methods by name, one module each.

A method is what it makes of a dataset, and the loss over that. All else (base model, memory, LoRA, steps, checkpoints,
curve, artifact) is the same for every method.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_trainer.recipe.methods import dpo, kto, sft
from lora_trainer.recipe.methods.method import Method

METHODS: Mapping[str, Method] = {"sft": sft.METHOD, "dpo": dpo.METHOD, "kto": kto.METHOD}
"""By the name that `Hyperparameters.method` chooses."""
