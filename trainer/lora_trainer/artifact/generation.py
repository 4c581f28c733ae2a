"""Writes the artifact's generation_config.json, which says at which tokens an answer ends."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import GenerationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: str) -> list[int]:
    """The ids of all tokens at which generation must end, each once.

    They are the token `stop`, which ends an answer in the chat template, the tokenizer's end-of-text token, and
    those at which the base model's own configuration ends.
    """
    ids = [tokenizer.convert_tokens_to_ids(stop), tokenizer.eos_token_id, *_ends_of_base(model)]
    return list(dict.fromkeys(ids))


def runs_on_note(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: str) -> str | None:
    """A sentence for the user where generation with the base's own settings would not end after an answer.

    Nothing reads the generation_config.json of an adapter's folder by itself: transformers and PEFT take the base's.
    """
    if tokenizer.convert_tokens_to_ids(stop) in _ends_of_base(model):
        return None
    return (
        f"The base's own generation settings do not end at {stop}, with which an answer ends: generate with "
        "generation_config.json of the adapter's folder, as its README shows, or name that token as a stop."
    )


def _ends_of_base(model: PreTrainedModel) -> list[int]:
    known = model.generation_config.eos_token_id
    return [] if known is None else known if isinstance(known, list) else [known]


def save_generation_config(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: str) -> None:
    """Write generation_config.json: the base model's sampling settings, with every token that ends an answer.

    Where the tokenizer and the chat template end with different tokens, generation would otherwise run on after the
    answer.
    """
    end_tokens = {"eos_token_id": stop_ids(model, tokenizer, stop), "pad_token_id": tokenizer.pad_token_id}
    config = copy.deepcopy(model.generation_config)
    try:
        config.update(**end_tokens)
        config.save_pretrained(folder)
    except ValueError:
        # Some base models bring a configuration that contradicts itself. transformers loads it, but refuses to save it.
        GenerationConfig(bos_token_id=tokenizer.bos_token_id, **end_tokens).save_pretrained(folder)
