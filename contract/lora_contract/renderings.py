"""What a base's chat template allows: known without the template, so that the worker needs no tokenizer.

`lora_trainer.data.chat` judges a tokenizer; the verdict on the bases that are offered, and on others that are asked for
often, stands here. A test holds the table against the templates. `lora-trainer judge MODEL` judges another base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rendering:
    """How a base's answers are rendered for training, so that they are learned as they will be served."""

    row: Literal["conversation", "answer"]
    """What becomes one row: a whole conversation, or each answer, where the template renders earlier turns anew."""
    system: Literal["in front", "first turn"]
    """Where a system prompt stands: where the template puts it, or at the beginning of the first user turn."""
    opens_thought: bool
    """Whether the generation prompt has begun a thought, which an answer must close before it begins."""
    stop: str
    """The token that ends an answer."""
    marks: tuple[str, ...] = ()
    """What marks turns as plain text, so that a text must not hold it (`lora_conversations.control_tokens.Marks`)."""
    history_as_served: bool = True
    """Whether earlier answers of a row stand there as a server renders them, and not with thoughts that it drops."""


_CHATML = Rendering("conversation", "in front", opens_thought=False, stop="<|im_end|>")
_MISTRAL = Rendering("conversation", "in front", opens_thought=False, stop="</s>", marks=("[/INST]", "[INST]"))

RENDERINGS: dict[str, Rendering] = {
    "mistralai/Mistral-7B-Instruct-v0.2": _MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.3": Rendering("conversation", "first turn", opens_thought=False, stop="</s>"),
    "meta-llama/Meta-Llama-3-8B-Instruct": Rendering(
        "conversation", "in front", opens_thought=False, stop="<|eot_id|>"
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": Rendering(
        "answer", "in front", opens_thought=True, stop="<｜end▁of▁sentence｜>"
    ),
    "Qwen/Qwen2.5-7B-Instruct": _CHATML,
    "Qwen/Qwen3-8B": Rendering(
        "conversation", "in front", opens_thought=False, stop="<|im_end|>", history_as_served=False
    ),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": _CHATML,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": _CHATML,
}
"""Bases whose answers can be learned as they are served."""

_NO_STOP = "its chat template ends an answer without a stop token, so it would never learn to stop"
REFUSALS: dict[str, str] = {"zai-org/GLM-4.5": _NO_STOP, "zai-org/GLM-4.5-Air": _NO_STOP}
"""Bases whose answers can't, and why."""
