"""Reads datasets of all accepted formats into training examples; worker and trainer both use it.

`read_examples` reads a file, `ExampleParser` reads bytes as they arrive. Both keep only one line or element of the
file in memory. `docs/formats.md` describes the formats and the rules. This module imports neither torch nor
transformers, because the worker validates datasets with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lora_conversations.documents import Frame, OuterKeys, doubled_key_error
from lora_conversations.errors import LineError
from lora_conversations.examples import ASSISTANT, SYSTEM, USER, Example, Message
from lora_conversations.framing import Framer
from lora_conversations.identity import conversation_key
from lora_conversations.line_numbers import lines_before
from lora_conversations.preferences import Sample
from lora_conversations.values import ValueReader

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

__all__ = [
    "ASSISTANT",
    "ERRORS_KEPT",
    "SYSTEM",
    "USER",
    "Example",
    "ExampleParser",
    "Message",
    "fold_system",
    "merge_conversations",
    "read_examples",
    "read_samples",
]

ERRORS_KEPT = 10
"""The most bad lines that a report describes, because the application shows no more."""


class ExampleParser:
    """An incremental parser: call `feed` with bytes as they arrive, then `close`.

    Raises, from `feed` and `close`:
        DatasetUnusableError: the file can't be read, or can't be read any further.
    """

    def __init__(self, method: Method | None = "sft") -> None:
        self.values = ValueReader(method)
        """Counts of what was read so far: formats, pairs without an answer, repairs, keys that are not used."""
        self._framer = Framer(self.values.repairs)
        self._located = 0

    def feed(self, chunk: bytes) -> Iterator[Sample | LineError]:
        """Yield the examples and bad lines that this chunk completes. Exhaust the iterator before the next call."""
        return self._read(self._framer.feed(chunk))

    def close(self) -> Iterator[Sample | LineError]:
        """Yield the examples and bad lines that the end of the file completes."""
        return self._read(self._framer.close())

    def _read(self, frames: Iterator[Frame | LineError]) -> Iterator[Sample | LineError]:
        for frame in frames:
            if isinstance(frame, LineError):
                yield frame
                continue
            for item in self._open(frame):
                yield self._locate(item, frame) if isinstance(item, LineError) else item

    def _open(self, frame: Frame) -> Sequence[Sample | LineError]:
        if frame.doubled is not None:
            return [LineError(frame.line, frame.key or None, *doubled_key_error(frame.doubled))]
        if isinstance(frame.value, OuterKeys):
            return self.values.read_outer_keys(frame.value.names, frame.line, frame.value.container)
        return self.values.read(frame.value, frame.line, frame.key)

    def _locate(self, error: LineError, frame: Frame) -> LineError:
        """Correct the line of an error if the element in which it occurred spans several lines."""
        self._located += 1
        # Finding the line parses the element again, so it is done only for as many errors as a report describes.
        if not frame.text or self._located > ERRORS_KEPT:
            return error
        within = (error.key or "").removeprefix(frame.key)
        return error._replace(line=frame.line + lines_before(frame.text, within))


def read_samples(chunks: Iterable[bytes], method: Method | None) -> Iterator[Sample | LineError]:
    """Yield what a method learns from a dataset, and the bad lines, in the order of the file, with constant memory.

    The samples are examples for `sft`, preferences for `dpo`, ratings for `kto`, and of all three kinds without a
    method.

    Raises:
        DatasetUnusableError: the file can't be read, or can't be read any further.
    """
    parser = ExampleParser(method)
    for chunk in chunks:
        yield from parser.feed(chunk)
    yield from parser.close()


def read_examples(chunks: Iterable[bytes]) -> Iterator[Example | LineError]:
    """Yield the examples and bad lines of a dataset for `sft`; see `read_samples`."""
    for item in read_samples(chunks, "sft"):
        assert isinstance(item, Example | LineError), "for sft, the reader makes examples of everything"
        yield item


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """Move the system prompt to the beginning of the first user turn, for chat templates without a system role."""
    if messages[0].role != SYSTEM:
        return list(messages)
    system, user, *rest = messages
    return [user._replace(content=f"{system.content}\n\n{user.content}"), *rest]


def merge_conversations(examples: Iterable[Example]) -> list[Example]:
    """Merge overlapping examples of one conversation into one example with several trained answers.

    Two examples are merged only if the second begins with all messages of the first. So each answer keeps exactly the
    context that it had, and is trained as often as before. All other examples are returned unchanged.
    """
    groups: defaultdict[str, list[tuple[int, Example]]] = defaultdict(list)
    for order, example in enumerate(examples):
        groups[conversation_key(example)].append((order, example))
    merged = [pair for group in groups.values() for pair in _merge_group(group)]
    return [example for _, example in sorted(merged, key=lambda pair: pair[0])]


def _merge_group(group: list[tuple[int, Example]]) -> list[tuple[int, Example]]:
    # Merged examples are found by the hash of all their messages: comparing each with each would take quadratic time.
    chains: defaultdict[int, list[tuple[int, Example]]] = defaultdict(list)
    for order, example in sorted(group, key=lambda pair: len(pair[1].messages)):
        hashes = _prefix_hashes(example)
        for length in range(example.trained[0], 0, -1):
            candidates = chains.get(hashes[length - 1])
            if candidates and _begins_with(example, candidates[0][1], length):
                first_order, chain = candidates.pop(0)
                order = min(order, first_order)
                example = _join(chain, example)
                break
        chains[hashes[-1]].append((order, example))
    return [pair for pairs in chains.values() for pair in pairs]


def _begins_with(example: Example, chain: Example, length: int) -> bool:
    return chain.messages == example.messages[:length] and chain.tools == example.tools


def _join(chain: Example, example: Example) -> Example:
    weights: tuple[float, ...] = ()
    if chain.weights or example.weights:
        weights = all_weights(chain) + all_weights(example)
    trained, line = chain.trained + example.trained, min(chain.line, example.line)
    return example._replace(trained=trained, line=line, weights=weights)


def all_weights(example: Example) -> tuple[float, ...]:
    """Return a weight for each learned answer of an example, also where all of them are 1."""
    return example.weights or (1.0,) * len(example.trained)


def _prefix_hashes(example: Example) -> list[int]:
    hashes: list[int] = []
    last = hash(example.tools)
    for message in example.messages:
        last = hash((last, message))
        hashes.append(last)
    return hashes
