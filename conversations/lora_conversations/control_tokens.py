"""Control tokens that a dataset's texts contain by chance, such as `<|im_end|>` in the middle of an answer.

A tokenizer turns such a text into the control token itself, wherever it stands. Then an answer would end in its middle,
or a part of a user's text would count as the assistant's. In a dataset's text they must be plain characters. So
`ControlTokens.hide` marks them before a conversation is rendered, and `ControlTokens.encode_hidden` encodes the marked
ones as text and those of the template as tokens.

The texts are those of all turns, of thoughts, of calls and their arguments, of results and of schemas. `<think>`,
`<tool_call>` and the like are control tokens, too, where the base's template writes them.

Some templates mark turns with plain text instead (`[INST]` of some Mistral models). Such a mark in a dataset's text
can't be distinguished from the template's own, so `Marks` finds and refuses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from lora_conversations.errors import LineError
from lora_conversations.examples import Message, texts_of
from lora_conversations.preferences import Sample, all_messages

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_REAL, _HIDDEN = 0xF0000, 0x100000
"""Where two ranges of private code points begin. A control token's first character is replaced by one of them: from
`_REAL` if the template wrote the token, from `_HIDDEN` if it stands in a dataset's text."""
_PRIVATE = re.compile(f"[{chr(_REAL)}-{chr(0x10FFFF)}]")
_MARKED = re.compile(f"[{chr(_HIDDEN)}-{chr(0x10FFFF)}]")
_NOTHING = re.compile(r"(?!)")


THOUGHT_MARKS = ("<think>", "</think>")
"""With which models mark their thoughts, whether these are tokens or not."""

WRITE_OTHERWISE = "Write it in another way or remove the example."


class Encoded(NamedTuple):
    """Token ids, and for each the range of characters `[start, end)` that it covers."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class ControlTokens:
    """The control tokens of one tokenizer: its special tokens, and the others with which its chat template marks parts.

    `written` is all that the template may write, such as its source. An added token that is not special, such as
    `<tool_call>`, counts as a mark if it looks like one and occurs there. Marks in a dataset's text are encoded as
    plain text. Other added tokens belong to what a model writes, so they stay tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str = "") -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        # The marks of a thought are put before an answer even where the template knows none.
        written += "".join(THOUGHT_MARKS)
        marking = {token.content for token in added if token.special or _is_mark(token.content, written)}
        # They are hidden even where they are no tokens, because templates look for them in texts.
        self._apart = sorted({*marking, *THOUGHT_MARKS}, key=len, reverse=True)
        self._index = {content: index for index, content in enumerate(self._apart)}
        self._hideable = _any_of(self._apart)
        self._marking = _any_of(marking)
        self._kept = _any_of(token.content for token in added if token.content not in marking)

    def find(self, messages: Iterable[Message]) -> set[str]:
        """Return the control tokens that the messages' texts contain; they are encoded as text."""
        return _found(self._marking, messages)

    def find_kept(self, messages: Iterable[Message]) -> set[str]:
        """Return the other added tokens that the messages' texts contain; these are encoded as tokens."""
        return _found(self._kept, messages)

    def are_in(self, texts: Iterable[str]) -> bool:
        """Tell whether a text contains something that has to be hidden before it is rendered."""
        return any(self._hideable.search(text) for text in texts)

    def refuse(self, sample: Sample) -> LineError | None:
        """Return an error if control tokens can't be hidden, because the texts already use the private characters."""
        texts = list(sample_texts(sample))
        if not any(_PRIVATE.search(text) for text in texts) or not self.are_in(texts):
            return None
        return LineError(
            sample.line, None, "holds a special token of the base beside private characters", WRITE_OTHERWISE
        )

    def hide(self, text: str) -> str:
        """Replace the first character of every control token in a dataset's text by a private character."""
        return self._hideable.sub(self._hidden, text)

    def hide_all(self, messages: Iterable[Message]) -> list[Message]:
        """Hide the control tokens in all texts of the messages."""
        return [
            message._replace(
                content=self.hide(message.content),
                thought=self.hide(message.thought),
                calls=tuple(
                    call._replace(name=self.hide(call.name), arguments=self.hide(call.arguments))
                    for call in message.calls
                ),
                name=self.hide(message.name) if message.name else message.name,
            )
            for message in messages
        ]

    def encode(self, rendered: str) -> Encoded:
        """Encode a rendered conversation exactly as the tokenizer does, without hiding anything."""
        encoded = self._tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        return Encoded(encoded["input_ids"], encoded["offset_mapping"])

    def encode_hidden(self, rendered: str) -> Encoded:
        """Encode a rendered conversation whose messages went through `hide`; offsets count its characters."""
        text = self._marking.sub(lambda match: self._real(match[0]), rendered)
        text = _MARKED.sub(lambda match: self._apart[ord(match[0]) - _HIDDEN][0], text)
        plain, ids = self._renamed_tokenizer
        encoding = plain.encode(text, add_special_tokens=False)
        return Encoded([ids.get(token, token) for token in encoding.ids], encoding.offsets)

    def _hidden(self, match: re.Match[str]) -> str:
        return chr(_HIDDEN + self._index[match[0]]) + match[0][1:]

    def _real(self, content: str) -> str:
        return chr(_REAL + self._index[content]) + content[1:]

    @cached_property
    def _renamed_tokenizer(self) -> tuple[Tokenizer, dict[int, int]]:
        """A copy of the tokenizer in which each control token begins with a private character.

        The second value maps the copy's token ids to the original ones, where they differ.
        """
        from tokenizers import Tokenizer

        description = json.loads(self._tokenizer.backend_tokenizer.to_str())
        description["truncation"] = description["padding"] = None
        names: dict[str, int] = {}
        for token in description["added_tokens"]:
            if token["content"] in self._index:
                token["content"] = self._real(token["content"])
            names[token["content"]] = token["id"]
        plain = Tokenizer.from_str(json.dumps(description))
        # An added token whose new name is not in the vocabulary gets a new id in the copy.
        return plain, {copied: own for name, own in names.items() if (copied := plain.token_to_id(name)) is not None}


class Marks:
    """Plain texts with which a chat template marks turns. A dataset's text that contains one would look like a turn.

    A mark that begins with a line break counts only at the beginning of a line.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)
        self._pattern = re.compile("|".join(map(_mark_pattern, self.texts))) if self.texts else _NOTHING

    def refuse(self, sample: Sample) -> LineError | None:
        """Return an error if a text of the example contains a mark, else None."""
        if not self.texts:
            return None
        for text in sample_texts(sample):
            if match := self._pattern.search(text):
                what = f"holds “{match[0]}”, with which the base's chat template marks a turn"
                return LineError(sample.line, None, what, WRITE_OTHERWISE)
        return None


def sample_texts(sample: Sample) -> Iterator[str]:
    """Yield every text of an example, a pair or a rated answer that a chat template shows."""
    for message in all_messages(sample):
        yield from texts_of(message)
    if sample.tools:
        yield sample.tools


def plain_marks(between: Iterable[str], tags: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Marks:
    """Find the plain-text marks of a template.

    `between` are the texts it writes before, between and after the messages. `tags` are those around calls and results,
    each with the line break before it.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    special = _any_of(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    token = _any_of(added)
    found = {_spell_mark(part) for piece in between for part in _plain_parts(piece, special, token)}
    found |= {tag for tag in tags if tag.strip() not in added and tag.strip() not in THOUGHT_MARKS}
    return Marks(sorted(found))


def _found(pattern: re.Pattern[str], messages: Iterable[Message]) -> set[str]:
    return {found for message in messages for text in texts_of(message) for found in pattern.findall(text)}


def _is_mark(content: str, written: str) -> bool:
    """Tell whether an added token that is not special looks like a mark, and the template may write it.

    Runs of spaces or line breaks, which some tokenizers have as added tokens, are no marks.
    """
    return content[:1] in {"<", "["} and content[-1:] in {">", "]"} and content in written


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    alternatives = sorted({content for content in contents if content}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, alternatives))) if alternatives else _NOTHING


def _plain_parts(piece: str, special: re.Pattern[str], token: re.Pattern[str]) -> list[str]:
    """Return the parts of a template's text between two messages that mark a turn without a special token."""
    if not special.search(piece):
        return [piece] if piece.strip() else []
    # Where a special token marks the turn, a plain word beside it, such as the role's name, is no mark. A text with
    # signs around it, such as “[INST]”, still is one.
    parts = ((part, part.strip()) for part in token.split(piece))
    return [part for part, name in parts if name and not (name[0].isalnum() or name[-1].isalnum())]


def _spell_mark(part: str) -> str:
    return f"\n{part.strip()}" if part.lstrip(" ").startswith("\n") else part.strip()


def _mark_pattern(mark: str) -> str:
    return ("(?m:^)" if mark.startswith("\n") else "") + re.escape(mark.strip())
