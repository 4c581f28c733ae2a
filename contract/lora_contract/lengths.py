"""How long the examples of a dataset are and what of them is learned, as `lora-trainer examples` prints it as JSON.

The trainer counts with a base model's tokenizer, the worker estimates where there is none; both fill these models.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RENDERED_EXAMPLES = 3
"""How many rendered examples are shown."""
RENDERED_CHARACTERS = 6000
"""The most characters of each of them."""
BOUNDS = tuple(2**power for power in range(6, 18))
"""The upper bounds of the histogram, in tokens: 64 to 131,072, which is the largest `max_length`."""

_FROZEN = ConfigDict(frozen=True)


class Part(BaseModel):
    """A text of a rendered example, and whether it is learned."""

    model_config = _FROZEN

    text: str
    learned: bool


class Rendered(BaseModel):
    """One example as the model sees it; of a pair there are two, one with each answer."""

    model_config = _FROZEN

    line: int
    title: str = ""
    """Which answer of a pair it is, or which thumb."""
    parts: list[Part]


class Bar(BaseModel):
    """How many sequences have at most `up_to` tokens, and more than the bar before it allows."""

    model_config = _FROZEN

    up_to: int
    sequences: int


class Lengths(BaseModel):
    """The lengths of a file's sequences. A pair has two sequences, any other example one or more."""

    model_config = _FROZEN

    counted_by: Literal["tokenizer", "estimate"]
    sequences: int
    tokens: int
    longest: int
    histogram: list[Bar]
    longer: int
    """Sequences with more than `max_length` tokens."""
    shortened: int | None = None
    """Rows that lose their oldest turns; None where only a tokenizer could tell."""
    left_out: int | None = None
    """Answers, of pairs: pairs, that don't fit even with the question alone; None where only a tokenizer could tell."""
    is_complete: bool = True
    """Whether all examples were counted. A tokenizer counts the first thousands of a long file."""
    rendered: list[Rendered] = Field(default_factory=list)


class LengthTally:
    """Adds up the lengths of sequences."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._bars = [0] * len(BOUNDS)
        self._sequences = self._tokens = self._longest = self._longer = 0

    def add(self, tokens: int) -> None:
        """Add a sequence of so many tokens."""
        self._sequences += 1
        self._tokens += tokens
        self._longest = max(self._longest, tokens)
        self._longer += tokens > self.max_length
        self._bars[min(bisect_left(BOUNDS, tokens), len(BOUNDS) - 1)] += 1

    def result(
        self,
        counted_by: Literal["tokenizer", "estimate"],
        rendered: Sequence[Rendered],
        *,
        shortened: int | None = None,
        left_out: int | None = None,
        is_complete: bool = True,
    ) -> Lengths:
        """Return the lengths so far, with what else was found."""
        last = max((index for index, count in enumerate(self._bars) if count), default=-1)
        return Lengths(
            counted_by=counted_by,
            sequences=self._sequences,
            tokens=self._tokens,
            longest=self._longest,
            histogram=[Bar(up_to=BOUNDS[index], sequences=self._bars[index]) for index in range(last + 1)],
            longer=self._longer,
            shortened=shortened,
            left_out=left_out,
            is_complete=is_complete,
            rendered=list(rendered),
        )


def cut_parts(parts: Sequence[tuple[str, bool]]) -> list[Part]:
    """Return the texts and whether each is learned, with `RENDERED_CHARACTERS` characters at the most."""
    kept, left = [], RENDERED_CHARACTERS
    for text, learned in parts:
        if text:
            kept.append(Part(text=text[:left], learned=learned))
        left -= len(text)
        if left <= 0:
            kept.append(Part(text=" …", learned=False))
            break
    return kept
