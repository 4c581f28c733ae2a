"""Makes tokenised rows of answers and their prompts: the same token ids that a server gives, answers alone learned.

A server encodes a prompt alone, and the model goes on from there. A row is encoded as a whole. So it is compared with
the prompt's own tokens: they differ where a token reaches from a prompt into its answer, or where the tokenizer splits
the prompt's last line break otherwise if a text follows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lora_conversations.control_tokens import Encoded
from lora_trainer.data.answers import Piece

_TAIL_CHARACTERS, _TAIL_TOKENS = 64, 4
"""So much of a prompt's end is looked at. Most prompts end with the same few characters after a special token, so their
tokens are kept; a longer end holds a text of the dataset."""

IGNORED = -100
"""Label of a token that is not learned."""


class Row(NamedTuple):
    """One tokenised training row. `labels` is as long as `input_ids`."""

    input_ids: list[int]
    labels: list[int]
    """The id of each token that is learned, `IGNORED` for all others."""
    answers: int
    """How many answers the row teaches."""
    weights: list[float] | None = None
    """How much each token counts in the loss, 0 where it is not learned; None where each learned token counts 1."""


class Span(NamedTuple):
    """The tokens of a row, from `start` up to but not including `end`, that are learned."""

    start: int
    end: int


class Labeller:
    """Turns answers with their prompts into rows.

    `starts` are the special tokens of prompts. What follows the last of them in a prompt is encoded by itself, to see
    whether a row has the same tokens there.
    """

    def __init__(self, encode: Callable[[str], Encoded], starts: Sequence[str]) -> None:
        self._encode = encode
        self._starts = starts
        self._tails: dict[str, list[int]] = {}

    def rows(self, pieces: Sequence[Piece], weights: Sequence[float]) -> list[Row]:
        """The row that learns all the pieces, of which each begins the next; a row for each where that is not exact.

        `weights` has one number for each piece, or none.
        """
        # Line breaks on both sides are one token in most vocabularies, so encoding them together would be in vain.
        if not any(piece.prompt[-1:].isspace() and piece.answer[:1].isspace() for piece in pieces):
            encoded = self._encode(pieces[-1].text)
            spans = [_tokens_of(piece, encoded.offsets) for piece in pieces]
            if all(self._is_exact(piece, encoded, span.start) for piece, span in zip(pieces, spans, strict=True)):
                return [_label(encoded.ids, spans, weights)]
        if len(pieces) > 1:
            return [row for at, piece in enumerate(pieces) for row in self.rows([piece], weights[at : at + 1])]
        prompt, answer = self._encode(pieces[0].prompt).ids, self._encode(pieces[0].answer).ids
        return [_label(prompt + answer, [Span(len(prompt), len(prompt) + len(answer))], weights)]

    def _is_exact(self, piece: Piece, encoded: Encoded, start: int) -> bool:
        """Whether the tokens before `start`, where the answer begins, are those of the prompt alone."""
        if encoded.offsets[start][0] < len(piece.prompt):
            return False
        if not piece.prompt[-1:].isspace():
            # Tokenizers look ahead behind white space only, so the prompt's end is split in the same way.
            return True
        tail = piece.prompt[max(map(piece.prompt.rfind, self._starts), default=0) :]
        if (expected := self._tails.get(tail)) is None:
            expected = self._encode(tail[-_TAIL_CHARACTERS:]).ids[-_TAIL_TOKENS:]
            if len(tail) <= _TAIL_CHARACTERS:
                self._tails[tail] = expected
        return encoded.ids[start - len(expected) : start] == expected


def _tokens_of(piece: Piece, offsets: Sequence[tuple[int, int]]) -> Span:
    """The tokens that lie in the answer of a piece, at least in part.

    `offsets` has each token's first character and the one after its last.
    """
    start = bisect_right(offsets, len(piece.prompt), key=lambda offset: offset[1])
    return Span(start, bisect_left(offsets, len(piece.text), key=lambda offset: offset[0]))


def _label(ids: list[int], spans: Sequence[Span], weights: Sequence[float]) -> Row:
    """The row that learns the tokens of the spans."""
    labels = [IGNORED] * len(ids)
    counts = [0.0] * len(ids) if any(weight != 1 for weight in weights) else None
    for at, (start, end) in enumerate(spans):
        labels[start:end] = ids[start:end]
        if counts is not None:
            counts[start:end] = [weights[at]] * (end - start)
    return Row(ids, labels, len(spans), counts)
