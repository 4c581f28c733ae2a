"""The model that answers: a base with transformers, adapters with PEFT. Torch is imported when one is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Tokens = list[int]
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen."""

    most_tokens: int
    temperature: float | None = None
    """0: always the most likely token; None: what the base's generation_config.json says, else 1."""
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, and on the last piece why it ends: `stop`, or `length` after the most tokens."""

    text: str
    tokens: int
    finish_reason: str | None = None


class LanguageModel(Protocol):
    """What the server needs of a model."""

    max_model_len: int

    def prompt_of(self, messages: Sequence[dict[str, Any]]) -> Tokens:
        """The tokens of a conversation, up to where the answer begins. Raises ValueError where that is impossible."""

    def tokens_of(self, text: str) -> Tokens:
        """The tokens of a text."""

    def add_adapter(self, number: int, folder: Path) -> None:
        """Read an adapter's files. Raises OSError where they are missing, ValueError where they don't fit."""

    def remove_adapter(self, number: int) -> None:
        """Forget an adapter."""

    def answer(self, prompt: Tokens, adapter: int | None, sampling: Sampling) -> Iterator[Piece]:
        """Generate an answer, piece by piece; the last piece has a reason. One answer at a time."""


class PeftModels:
    """A base model, and adapters that are switched on and off."""

    def __init__(self, weights: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)  # two threads on a busy machine are many times slower than one
        self._tokenizer = AutoTokenizer.from_pretrained(weights)
        self._model: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
        self._wrapped = {
            name.rpartition(".")[2]
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        self._defaults = self._model.generation_config
        self.max_model_len = int(self._model.config.max_position_embeddings)
        ends = self._defaults.eos_token_id
        self._ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

    def prompt_of(self, messages: Sequence[dict[str, Any]]) -> Tokens:
        """See `LanguageModel`."""
        from jinja2 import TemplateError

        try:
            return list(
                self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)[
                    "input_ids"
                ]
            )
        except TemplateError as error:
            raise ValueError(str(error)) from None

    def tokens_of(self, text: str) -> Tokens:
        """See `LanguageModel`."""
        return list(self._tokenizer(text)["input_ids"])

    def add_adapter(self, number: int, folder: Path) -> None:
        """See `LanguageModel`. As in vLLM, a tensor of a kind of module that carries no LoRA is a fault, and one of a
        module that is not there is passed over without a word: an adapter whose tensors were renamed changes nothing.
        """
        from peft import PeftModel
        from safetensors import safe_open

        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            held = set(file.keys())
        if strange := sorted(name for name in held if _kind_of(name) not in self._wrapped):
            raise ValueError(f"{strange[0]:.200} is of a module that carries no LoRA")
        name = _name(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are missing or find no place
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(folder, adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=name)
        for place, parameter in self._model.named_parameters():
            if f".{name}." in place and place.replace(f".{name}.", ".") not in held:
                parameter.data.zero_()

    def remove_adapter(self, number: int) -> None:
        """See `LanguageModel`."""
        self._model.delete_adapter(_name(number))

    def answer(self, prompt: Tokens, adapter: int | None, sampling: Sampling) -> Iterator[Piece]:
        """See `LanguageModel`."""
        import torch

        generator = torch.Generator().manual_seed(sampling.seed if sampling.seed is not None else torch.seed() % 2**31)
        written: Tokens = []
        shown, cache, ids = "", None, torch.tensor([prompt])
        while True:
            with torch.no_grad(), self._switched(adapter):
                out = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = self._choose(out.logits[0, -1], sampling, generator)
            reason = "stop" if token in self._ends else None
            written.append(token)
            if reason is None and len(written) >= sampling.most_tokens:
                reason = "length"
            text = self._tokenizer.decode(written, skip_special_tokens=True)
            # The bytes of a character may come in several tokens.
            if reason is None and text.endswith(_REPLACEMENT):
                new = ""
            else:
                new, shown = text[len(shown) :], text
            yield Piece(new, len(written), reason)
            if reason is not None:
                return
            ids = torch.tensor([[token]])

    def _switched(self, adapter: int | None) -> Any:
        """A context in which this adapter is switched on; None: none is."""
        import contextlib

        if adapter is not None:
            self._model.set_adapter(_name(adapter))
            return contextlib.nullcontext()
        return self._model.disable_adapter() if hasattr(self._model, "peft_config") else contextlib.nullcontext()

    def _choose(self, logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
        import torch

        temperature = _first(sampling.temperature, self._defaults.temperature, 1.0)
        if temperature <= 0:
            return int(logits.argmax())
        shares = torch.softmax(logits / temperature, -1)
        sorted_shares, order = shares.sort(descending=True)
        top_p = _first(sampling.top_p, self._defaults.top_p, 1.0)
        kept = sorted_shares * (sorted_shares.cumsum(0) - sorted_shares < top_p)
        return int(order[torch.multinomial(kept, 1, generator=generator)])


def _kind_of(tensor: str) -> str:
    """The last part of the name of a tensor's module, such as `q_proj`."""
    return tensor.partition(".lora_")[0].rpartition(".")[2]


def _name(number: int) -> str:
    return f"adapter{number}"


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
