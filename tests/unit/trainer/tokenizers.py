"""A small byte-level tokenizer for any chat template, with every special token they use."""

from __future__ import annotations

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
# Mistral-7B-Instruct-v0.3, tools left out: the system prompt stands in the last message, if that is the user's,
# so it wanders from turn to turn and is gone when the last message is an answer.
MISTRAL_V0_3 = (
    _ALTERNATING + "{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if loop.last and system_message is defined %}{{ system_message + '\n\n' }}{% endif %}"
    "{{ message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content']|trim + eos_token }}{% endif %}"
    "{% endfor %}"
)
NO_STOP = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
_SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>"]
_SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>"]
_SPECIAL += ["<|user|>", "<|assistant|>", "<|system|>"]
R1_SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
# DeepSeek-R1-Distill as it is served: a system prompt without a mark, a prompt that begins a thought, and earlier
# answers without theirs.
R1_DISTILL = (
    "{{ bos_token }}{% for message in messages if message['role'] == 'system' %}{{ message['content'] }}{% endfor %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
# Nemotron's kind of the same: the rendering of an answer has an empty thought that the prompt has not begun.
EMPTY_THOUGHT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ '<think></think>' + message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Tokens of the vocabulary since v0.3; before, plain text.
_OWN_SPECIAL = {"mistral_v0_3": ["[INST]", "[/INST]"]}
_STOPS = {
    "r1_distill": R1_SPECIAL[-1],
    "empty_thought": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi3": "<|endoftext|>",
}

TEMPLATES = (
    "chatml",
    "mistral_v0_2",
    "mistral_v0_3",
    "strict",
    "llama3",
    "llama3_1",
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "gemma",
)
TEMPLATES += ("phi3", "r1_distill", "empty_thought", "none")


def tokenizer_with(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with the named template: our own, TRL's copy of a well-known one, or none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([Path(__file__).read_text()], trainer)
    stop = _STOPS.get(name, "<|im_end|>" if name.startswith(("qwen", "chatml")) else "</s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token=stop,
        additional_special_tokens=[*_SPECIAL, *R1_SPECIAL, *_OWN_SPECIAL.get(name, ())],
    )
    own = {"chatml": CHAT_TEMPLATE, "strict": STRICT, "none": None}
    own |= {"mistral_v0_2": MISTRAL_V0_2, "mistral_v0_3": MISTRAL_V0_3}
    own |= {"r1_distill": R1_DISTILL, "empty_thought": EMPTY_THOUGHT}
    if template is None and name not in own:
        template = (SHIPPED / f"{name}.jinja").read_text()
    tokenizer.chat_template = template or own.get(name)
    return tokenizer
