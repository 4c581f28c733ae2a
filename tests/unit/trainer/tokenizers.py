"""A small tokenizer that speaks any chat template: byte-level, with every special token they use."""

from __future__ import annotations

from pathlib import Path

import trl
from transformers import PreTrainedTokenizerFast

from sandbox.tiny_model import CHAT_TEMPLATE

SHIPPED = Path(trl.__file__).parent / "chat_templates"
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}"
    "{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
NO_STOP = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
_SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>"]
_SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>"]
_SPECIAL += ["<|user|>", "<|assistant|>", "<|system|>"]
_STOPS = {"llama3": "<|eot_id|>", "llama3_1": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|endoftext|>"}

TEMPLATES = ("chatml", "mistral", "strict", "llama3", "llama3_1", "qwen2_5", "qwen3", "qwen3_instruct_2507", "gemma")
TEMPLATES += ("phi3", "none")


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
        tokenizer_object=raw, bos_token="<s>", eos_token=stop, additional_special_tokens=_SPECIAL
    )
    own = {"chatml": CHAT_TEMPLATE, "mistral": MISTRAL, "strict": STRICT, "none": None}
    if template is None and name not in own:
        template = (SHIPPED / f"{name}.jinja").read_text()
    tokenizer.chat_template = template or own.get(name)
    return tokenizer
