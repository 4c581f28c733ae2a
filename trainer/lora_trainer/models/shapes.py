"""The configurations of the most popular base models, so that their memory can be planned without access to the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_contract.base_shapes import SHAPES

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def known_config(name: str) -> PretrainedConfig | None:
    """The configuration of a model in `SHAPES`, complete enough to plan its memory; None for other models."""
    from transformers import AutoConfig

    if name not in SHAPES:
        return None
    architecture, shape = SHAPES[name]
    return AutoConfig.for_model(architecture, **{"tie_word_embeddings": False, **shape})
