"""Base models of one million weights, made on the spot: small enough for one core, real in every part.

A true architecture scaled down, a byte-level BPE tokenizer with a chat template, trained for some seconds on plain
conversations, so that an adapter can visibly learn on top of it.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox import sample_text, tiny_architectures

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 1536
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "additional_special_tokens": ["<|im_start|>"]}
_CONVERSATIONS = 1500
_STEPS = 160
_STEPS_OF_OTHERS = 120
"""The demo and most tests use Llama; for the others it is enough that an adapter has something to learn on."""
_ROWS, _TOKENS = 4, 256
_SEED = 1


def build_tiny_model(cache_dir: Path, architecture: str = "llama") -> Path:
    """The folder of a tiny base model under `cache_dir`; made in about half a minute when missing.

    `architecture` is one of `tiny_architectures.ARCHITECTURES`.
    """
    folder = cache_dir / f"tiny-{architecture}-{_recipe_hash()}"
    if (folder / "config.json").is_file():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed, so that two builds at once, or a killed one, leave no half a model.
    with tempfile.TemporaryDirectory(dir=cache_dir) as aside:
        model, tokenizer = _make(architecture)
        # Several files and one key an expert, as the large models lie on the hub.
        model.save_pretrained(aside, max_shard_size="2MB")
        tokenizer.save_pretrained(aside)
        if not folder.exists():
            shutil.copytree(aside, folder.with_suffix(f".{os.getpid()}"))
            folder.with_suffix(f".{os.getpid()}").rename(folder)
    return folder


def _recipe_hash() -> str:
    import transformers

    modules = (sys.modules[__name__], sample_text, tiny_architectures)
    sources = "".join(map(inspect.getsource, modules))
    return hashlib.sha256((sources + transformers.__version__).encode()).hexdigest()[:12]


def _make(architecture: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads on a busy machine are many times slower than one
    try:
        chance = random.Random(_SEED)  # noqa: S311 sample text, not a secret
        conversations = [sample_text.plain_conversation(chance) for _ in range(_CONVERSATIONS)]
        tokenizer = _train_tokenizer(conversations)
        stream = [token for talk in conversations for token in tokenizer.apply_chat_template(talk)["input_ids"]]
        return _train_model(architecture, tokenizer, torch.tensor(stream)), tokenizer
    finally:
        torch.set_num_threads(threads)


def _train_tokenizer(conversations: list[list[dict[str, str]]]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    warm = (pair["target_response"] for n in range(200) for pair in sample_text.warm_pairs(n, random.Random(n)))  # noqa: S311
    plain = (message["content"] for talk in conversations for message in talk)
    tokenizer.train_from_iterator([*plain, *warm, inspect.getsource(sample_text)], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.model_max_length = 8192
    return wrapped


def _train_model(architecture: str, tokenizer: PreTrainedTokenizerFast, stream: torch.Tensor) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(_SEED)
    config = tiny_architectures.tiny_config(
        architecture,
        vocab_size=VOCABULARY,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    steps = _STEPS if architecture == "llama" else _STEPS_OF_OTHERS
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    chance = torch.Generator().manual_seed(_SEED)
    for _ in range(steps):
        starts = torch.randint(len(stream) - _TOKENS, (_ROWS,), generator=chance)
        rows = torch.stack([stream[start : start + _TOKENS] for start in starts.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()
