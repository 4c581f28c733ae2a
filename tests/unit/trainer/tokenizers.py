"""A small byte-level tokenizer for any chat template, with every special token they use."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import trl
from transformers import PreTrainedTokenizerFast

from sandbox.tiny_model import CHAT_TEMPLATE

SHIPPED = Path(trl.__file__).parent / "chat_templates"
_ALTERNATING = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('After the optional system message, roles must alternate user/assistant') }}{% endif %}"
)
# Mistral-7B-Instruct-v0.2 as it was released: no system role at all.
STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
# Mistral-7B-Instruct-v0.2 as it is now: the system prompt is part of the first user turn.
MISTRAL_V0_2 = (
    _ALTERNATING + "{% if message['role'] == 'user' %}{{ ' [INST] ' }}"
    "{% if loop.first and system_message is defined %}{{ system_message + '\n\n' }}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Mistral-7B-Instruct-v0.1 as it was released: a space behind the stop token, none before an answer.
MISTRAL_V0_1 = STRICT.replace("' ' + message['content'] + eos_token", "message['content'] + eos_token + ' '")
_TEMPLATES = Path(__file__).parent / "templates"
MISTRAL_V0_3 = (_TEMPLATES / "mistral_v0_3.jinja").read_text()
# SmolLM2's instruction-tuned models (Apache-2.0): ChatML with a system prompt of their own.
SMOLLM2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n' }}{% endif %}" + CHAT_TEMPLATE
)
NO_STOP = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
_SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>"]
_SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>"]
_SPECIAL += ["<|user|>", "<|assistant|>", "<|system|>"]
R1_SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
# Nemotron's kind of the same: the rendering of an answer has an empty thought that the prompt has not begun.
EMPTY_THOUGHT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ '<think></think>' + message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Tokens of the vocabulary since v0.3; before, plain text.
_MISTRAL_SPECIAL = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
_MISTRAL_SPECIAL += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
_OWN_SPECIAL = {"mistral_v0_3": _MISTRAL_SPECIAL}
_CALL_TOKENS = ["<tool_call>", "</tool_call>"]
_THOUGHT_TOKENS = ["<think>", "</think>"]
_QWEN3_TOKENS = [*_CALL_TOKENS, "<tool_response>", "</tool_response>", *_THOUGHT_TOKENS]
# Tokens of the vocabulary that are not special.
_ADDED = {
    "qwen2_5": _CALL_TOKENS,
    "qwen3": _QWEN3_TOKENS,
    "qwen3_instruct_2507": _QWEN3_TOKENS,
    "deepseek_r1_distill": [*_CALL_TOKENS, *_THOUGHT_TOKENS],
}
_STOPS = {
    "deepseek_r1_distill": R1_SPECIAL[-1],
    "empty_thought": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|endoftext|>",
    "phi3_5": "<|endoftext|>",
    "smollm2": "<|im_end|>",
}

TEMPLATES = (
    "chatml",
    "smollm2",
    "mistral_v0_1",
    "mistral_v0_2",
    "mistral_v0_3",
    "strict",
    "llama3",
    "llama3_1",
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "gemma",
    "gemma3",
    "phi3",
    "phi3_5",
    "deepseek_r1_distill",
    "empty_thought",
    "none",
)
_OWN = {"chatml": CHAT_TEMPLATE, "smollm2": SMOLLM2, "strict": STRICT, "none": None, "empty_thought": EMPTY_THOUGHT}
_OWN |= {"mistral_v0_1": MISTRAL_V0_1, "mistral_v0_2": MISTRAL_V0_2, "mistral_v0_3": MISTRAL_V0_3}


# Families that are not offered and of which TRL ships the template; each writes calls or thoughts in its own way.
OTHERS = (
    "qwen3_5_think",
    "qwen3_5_nothink",
    "qwen3_8",
    "nemotron_3_nano",
    "lfm2_2_5",
    "gemma4_v5",
    "muse_glimmer",
    "deepseekv3",
    "cohere2",
    "gptoss",
)
_MARK = re.compile(r"<\|[^|<>\n]{1,40}\|?>|<[a-z_]+\|>")


# How the tokenizers of Llama 3 and Qwen split a text: line breaks stay together, whatever follows.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@lru_cache
def _vocabulary() -> str:
    """The tokenizer without special tokens, as JSON; training it takes longer than most tests."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([MISTRAL_V0_3, MISTRAL_V0_2, EMPTY_THOUGHT, "A line.\n\nAnother line.\n\n" * 50], trainer)
    return raw.to_str()


def _marks_of_others(name: str) -> list[str]:
    return sorted(set(_MARK.findall((SHIPPED / f"{name}.jinja").read_text()))) if name in OTHERS else []


def tokenizer_with(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with the named template: our own, TRL's copy of a well-known one (Apache-2.0), or none.

    It has the added tokens with which such a model marks turns, calls and thoughts.
    """
    from tokenizers import AddedToken, Tokenizer

    stop = _STOPS.get(name, "<|im_end|>" if name.startswith(("qwen", "chatml")) else "</s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()),
        bos_token="<s>",
        eos_token=stop,
        additional_special_tokens=[*_SPECIAL, *R1_SPECIAL, *_OWN_SPECIAL.get(name, ()), *_marks_of_others(name)],
    )
    tokenizer.add_tokens([AddedToken(token, special=False) for token in _ADDED.get(name, ())])
    if template is None and name not in _OWN:
        template = (SHIPPED / f"{name}.jinja").read_text()
    tokenizer.chat_template = template or _OWN.get(name)
    return tokenizer
