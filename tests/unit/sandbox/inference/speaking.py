"""A model that says its adapter's name, so that rules can be tested without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sandbox.inference.language_model import Piece, Sampling, Tokens

BASE = "example/base"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": BASE,
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
}


def put_adapter(folder: Path, name: str, **config: Any) -> Path:
    """Put an adapter into the resolver's folder: its configuration, and a file of weights with one LoRA tensor."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    header = json.dumps(
        {"base_model.model.q_proj.lora_A.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    )
    (place / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    return place


class SpeakingModel:
    """Answers with the name of the adapter's folder, or with “base”, one letter a token."""

    max_model_len = 40

    def __init__(self) -> None:
        self.held: dict[int, str] = {}

    def prompt_of(self, messages: Sequence[dict[str, Any]]) -> Tokens:
        if messages and messages[0].get("role") == "nobody":
            raise ValueError("unknown role")
        return self.tokens_of("".join(str(message.get("content")) for message in messages))

    def tokens_of(self, text: str) -> Tokens:
        return [ord(letter) for letter in text]

    def add_adapter(self, number: int, folder: Path) -> None:
        (folder / "adapter_model.safetensors").read_bytes()
        self.held[number] = folder.name

    def remove_adapter(self, number: int) -> None:
        del self.held[number]

    def answer(self, prompt: Tokens, adapter: int | None, sampling: Sampling) -> Iterator[Piece]:
        text = "base" if adapter is None else self.held[adapter]
        for count, letter in enumerate(text[: sampling.most_tokens], start=1):
            yield Piece(letter, count, "length" if count == sampling.most_tokens else None)
        if sampling.most_tokens > len(text):
            yield Piece("", len(text) + 1, "stop")
