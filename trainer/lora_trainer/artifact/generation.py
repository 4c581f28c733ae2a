"""What the artifact says of generating: when an answer ends, by token ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import GenerationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: str) -> list[int]:
    """Ids at which generation ends: of the token that ends an answer, and of what base and tokenizer end with."""
    known = model.generation_config.eos_token_id
    ids = [tokenizer.convert_tokens_to_ids(stop), tokenizer.eos_token_id]
    ids += [] if known is None else known if isinstance(known, list) else [known]
    return list(dict.fromkeys(ids))


def save_generation_config(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: str) -> None:
    """Write generation_config.json: the base's own way of sampling, and every token that ends an answer.

    Where tokenizer and chat template disagree on that, generation would else run on after the answer.
    """
    ends = {"eos_token_id": stop_ids(model, tokenizer, stop), "pad_token_id": tokenizer.pad_token_id}
    config = copy.deepcopy(model.generation_config)
    try:
        config.update(**ends)
        config.save_pretrained(folder)
    except ValueError:
        # Some bases ship a configuration that contradicts itself, which transformers loads and does not save.
        GenerationConfig(bos_token_id=tokenizer.bos_token_id, **ends).save_pretrained(folder)
