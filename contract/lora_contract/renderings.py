"""How each base model's chat template must be used for training, as a table.

With this table the worker needs no tokenizer. `lora_trainer.data.chat` finds these properties out from a tokenizer; the
table holds its results for the base models that are offered and for others that users often ask for. A test compares
the table with the templates. `lora-trainer judge MODEL` prints the properties of another base model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Rendering:
    """How conversations are rendered for training, so that the model learns what a server will later ask it for."""

    row: Literal["conversation", "answer"]
    """What one training row holds: a whole conversation, or one answer with its history.

    Each answer needs its own row where the template renders a turn differently once other turns follow it.
    """
    system: Literal["in front", "first turn"]
    """Where the system prompt goes: where the template puts it, or at the beginning of the first user turn."""
    opens_thought: bool
    """Whether the generation prompt ends inside a thought (`<think>`), which the answer then has to close first."""
    stop: str
    """The token that ends an answer."""
    marks: tuple[str, ...] = ()
    """Plain text with which the template marks turns. Texts of the dataset must not contain it (see
    `lora_conversations.control_tokens.Marks`)."""
    takes_tools: bool = False
    """Whether the template shows the tools' schemas, the assistant's calls and the tools' results."""
    several_calls: bool = True
    """Whether an answer may call several tools at once."""
    text_beside_calls: bool = True
    """Whether a text is shown beside the calls of the same answer."""
    thoughts: Literal["text", "dropped", "last", "kept"] = "text"
    """What a prompt shows of the thoughts of earlier answers.

    text: nothing, and the template knows no thoughts: one is learned as `<think>` text before its answer;
    dropped: nothing; last: those since the last user turn; kept: all."""


_CHATML = Rendering("conversation", "in front", opens_thought=False, stop="<|im_end|>")
_MISTRAL = Rendering("conversation", "in front", opens_thought=False, stop="</s>", marks=("[/INST]", "[INST]"))
_QWEN2_5 = replace(_CHATML, takes_tools=True, marks=("\n</tool_response>", "\n<tool_response>"))
_QWEN3_INSTRUCT = replace(_CHATML, takes_tools=True)

RENDERINGS: dict[str, Rendering] = {
    "mistralai/Mistral-7B-Instruct-v0.2": _MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.3": Rendering(
        "conversation", "first turn", opens_thought=False, stop="</s>", takes_tools=True, text_beside_calls=False
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": Rendering(
        "conversation", "in front", opens_thought=False, stop="<|eot_id|>"
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": Rendering(
        "answer", "in front", opens_thought=True, stop="<｜end▁of▁sentence｜>", thoughts="dropped"
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN2_5,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN2_5,
    "Qwen/Qwen3-8B": Rendering(
        "answer", "in front", opens_thought=False, stop="<|im_end|>", takes_tools=True, thoughts="last"
    ),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": _QWEN3_INSTRUCT,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": _QWEN3_INSTRUCT,
}
"""Base models that can be trained on exactly what a server will render."""

_NO_STOP = "its chat template ends an answer without a stop token, so it would never learn to stop"
REFUSALS: dict[str, str] = {"zai-org/GLM-4.5": _NO_STOP, "zai-org/GLM-4.5-Air": _NO_STOP}
"""Base models that can't be trained, each with the reason, as the end of a sentence."""
