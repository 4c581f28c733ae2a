"""Control tokens that stand in a dataset's texts, such as `<|im_end|>` in an answer.

A tokenizer makes one token of them wherever they stand, so that an answer would end in its middle, or a
user's text would speak as the assistant. In a text they are characters like all others: `hide` marks them
before a conversation is rendered, and `encode` tells them from the template's own. What a template marks its
turns with as plain text (`[INST]` of some Mistral models) can't be told apart; `Marks` finds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from lora_conversations.examples import Example, LineError, Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_REAL, _HIDDEN = 0xF0000, 0x100000
"""Private code points that stand for the first character of the template's tokens and of the texts'."""
_PRIVATE = re.compile(f"[{chr(_REAL)}-{chr(0x10FFFF)}]")
_MARKED = re.compile(f"[{chr(_HIDDEN)}-{chr(0x10FFFF)}]")
_NOTHING = re.compile(r"(?!)")


WRITE_OTHERWISE = "Write it in another way or remove the example."


class Encoded(NamedTuple):
    """Token ids, and the characters that each covers."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class ControlTokens:
    """The control tokens of one tokenizer.

    Special tokens become text. Other added tokens (`<think>`, `<tool_call>`) are part of what a model writes,
    and stay what they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._specials = sorted({token.content for token in added if token.special}, key=len, reverse=True)
        self._index = {content: index for index, content in enumerate(self._specials)}
        self._special = _any_of(self._specials)
        self._added = _any_of(token.content for token in added if not token.special)

    def find(self, messages: Sequence[Message]) -> set[str]:
        """The special tokens that stand in the messages' texts."""
        return {found for message in messages for found in self._special.findall(message.content)}

    def find_kept(self, messages: Sequence[Message]) -> set[str]:
        """The other added tokens that stand there, which are read as tokens."""
        return {found for message in messages for found in self._added.findall(message.content)}

    def refuse(self, example: Example) -> LineError | None:
        """The error of an example in which they can't be hidden: its texts use the characters that hiding needs."""
        if not self.find(example.messages) or not any(_PRIVATE.search(text) for _, text in example.messages):
            return None
        return LineError(
            example.line, None, "holds a special token of the base beside private characters", WRITE_OTHERWISE
        )

    def hide(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with each control token marked: its first character becomes a private one."""

        def mark(match: re.Match[str]) -> str:
            return chr(_HIDDEN + self._index[match[0]]) + match[0][1:]

        return [message._replace(content=self._special.sub(mark, message.content)) for message in messages]

    def encode(self, rendered: str) -> Encoded:
        """The tokens of a rendered conversation, as the tokenizer itself makes them."""
        encoded = self._tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        return Encoded(encoded["input_ids"], encoded["offset_mapping"])

    def encode_hidden(self, rendered: str) -> Encoded:
        """The tokens of a rendered conversation whose messages went through `hide`; offsets count its characters."""
        text = self._special.sub(lambda match: self._real(match[0]), rendered)
        text = _MARKED.sub(lambda match: self._specials[ord(match[0]) - _HIDDEN][0], text)
        plain, ids = self._apart
        encoding = plain.encode(text, add_special_tokens=False)
        return Encoded([ids.get(token, token) for token in encoding.ids], encoding.offsets)

    def _real(self, content: str) -> str:
        return chr(_REAL + self._index[content]) + content[1:]

    @cached_property
    def _apart(self) -> tuple[Tokenizer, dict[int, int]]:
        """A copy of the tokenizer that knows its special tokens by their private names, and the ids they had."""
        from tokenizers import Tokenizer

        description = json.loads(self._tokenizer.backend_tokenizer.to_str())
        description["truncation"] = description["padding"] = None
        names: dict[str, int] = {}
        for token in description["added_tokens"]:
            if token["content"] in self._index:
                token["content"] = self._real(token["content"])
            names[token["content"]] = token["id"]
        plain = Tokenizer.from_str(json.dumps(description))
        # A token whose name the vocabulary doesn't know gets another id in the copy.
        return plain, {copied: own for name, own in names.items() if (copied := plain.token_to_id(name)) is not None}


class Marks:
    """What a chat template writes between turns as plain text, so that a text with it looks like a turn.

    A mark that begins with a line break is one at the beginning of a line alone.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)
        self._pattern = re.compile("|".join(map(_mark_pattern, self.texts))) if self.texts else _NOTHING

    def refuse(self, example: Example) -> LineError | None:
        """The error of an example that holds a mark."""
        for message in example.messages:
            if match := self._pattern.search(message.content):
                what = f"holds “{match[0]}”, with which the base's chat template marks a turn"
                return LineError(example.line, None, what, WRITE_OTHERWISE)
        return None


def plain_marks(between: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Marks:
    """The marks of a template that writes these stretches before, between and after the texts of a conversation."""
    added = tokenizer.added_tokens_decoder.values()
    special, token = _any_of(t.content for t in added if t.special), _any_of(t.content for t in added)
    found = {_spell_mark(part) for piece in between for part in _plain_parts(piece, special, token)}
    return Marks(sorted(found))


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    alternatives = sorted({content for content in contents if content}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, alternatives))) if alternatives else _NOTHING


def _plain_parts(piece: str, special: re.Pattern[str], token: re.Pattern[str]) -> list[str]:
    """The parts of a stretch between two texts that mark a turn without help of a special token."""
    if not special.search(piece):
        return [piece] if piece.strip() else []
    # Beside a special token, a bare word such as a role's name marks nothing; “[INST]” does.
    parts = ((part, part.strip()) for part in token.split(piece))
    return [part for part, name in parts if name and not (name[0].isalnum() or name[-1].isalnum())]


def _spell_mark(part: str) -> str:
    return f"\n{part.strip()}" if part.lstrip(" ").startswith("\n") else part.strip()


def _mark_pattern(mark: str) -> str:
    return ("(?m:^)" if mark.startswith("\n") else "") + re.escape(mark.strip())
