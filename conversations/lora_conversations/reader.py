"""The dataset loader that worker and trainer share: any accepted file to training examples.

`read_examples` for a file at hand, `ExampleParser` for bytes that arrive; both hold one line or one
element of the file in memory. `docs/formats.md` describes the formats and the rules.
Imports neither torch nor transformers: the worker validates datasets with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from lora_conversations.documents import Around, Frame, lines_before, twice
from lora_conversations.examples import (
    ASSISTANT,
    SYSTEM,
    USER,
    Example,
    LineError,
    Message,
)
from lora_conversations.framing import Framer
from lora_conversations.identity import conversation_key
from lora_conversations.values import ValueReader

__all__ = [
    "ASSISTANT",
    "ERRORS_KEPT",
    "SYSTEM",
    "USER",
    "Example",
    "ExampleParser",
    "LineError",
    "Message",
    "fold_system",
    "merge_conversations",
    "read_examples",
]

ERRORS_KEPT = 10
"""Bad lines that a report names; the application shows no more."""


class ExampleParser:
    """A push parser: `feed` it bytes as they arrive, then `close` it.

    Raises, from `feed` and `close`:
        DatasetUnusableError: the file can't be read, or not any further.
    """

    def __init__(self) -> None:
        self.values = ValueReader()
        """What was met so far: formats, pairs without an answer, repairs, keys that nothing reads."""
        self._framer = Framer(self.values.repairs)
        self._located = 0

    def feed(self, chunk: bytes) -> Iterator[Example | LineError]:
        """The examples and bad lines that this chunk completes. Exhaust it before the next call."""
        return self._read(self._framer.feed(chunk))

    def close(self) -> Iterator[Example | LineError]:
        """The examples and bad lines that the end of the file completes."""
        return self._read(self._framer.close())

    def _read(self, frames: Iterator[Frame | LineError]) -> Iterator[Example | LineError]:
        for frame in frames:
            if isinstance(frame, LineError):
                yield frame
                continue
            for item in self._open(frame):
                yield self._locate(item, frame) if isinstance(item, LineError) else item

    def _open(self, frame: Frame) -> Sequence[Example | LineError]:
        if frame.doubled is not None:
            return [LineError(frame.line, frame.key or None, *twice(frame.doubled))]
        if isinstance(frame.value, Around):
            return self.values.read_around(frame.value.names, frame.line, frame.value.container)
        return self.values.read(frame.value, frame.line, frame.key)

    def _locate(self, error: LineError, frame: Frame) -> LineError:
        """The error with its own line, where its element spans several."""
        self._located += 1
        # Finding a line parses the element again: worth it for those that a report names.
        if not frame.text or self._located > ERRORS_KEPT:
            return error
        within = (error.key or "").removeprefix(frame.key)
        return error._replace(line=frame.line + lines_before(frame.text, within))


def read_examples(chunks: Iterable[bytes]) -> Iterator[Example | LineError]:
    """Examples and bad lines of a dataset, in the order of the file, in constant memory.

    Raises:
        DatasetUnusableError: the file can't be read, or not any further.
    """
    parser = ExampleParser()
    for chunk in chunks:
        yield from parser.feed(chunk)
    yield from parser.close()


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """A conversation whose system prompt opens the first user turn, for templates without that role."""
    if messages[0].role != SYSTEM:
        return list(messages)
    system, user, *rest = messages
    return [Message(USER, f"{system.content}\n\n{user.content}"), *rest]


def merge_conversations(examples: Iterable[Example]) -> list[Example]:
    """Overlapping examples of one conversation as one example with several trained answers.

    Two are merged only when the first, whole, is how the second begins: each answer keeps exactly the
    context that it had, and is trained as often as before. Whatever doesn't fit is left as it is.
    """
    groups: defaultdict[str, list[tuple[int, Example]]] = defaultdict(list)
    for order, example in enumerate(examples):
        groups[conversation_key(example)].append((order, example))
    merged = [pair for group in groups.values() for pair in _merge_group(group)]
    return [example for _, example in sorted(merged, key=lambda pair: pair[0])]


def _merge_group(group: list[tuple[int, Example]]) -> list[tuple[int, Example]]:
    # Chains by the hash of all their messages, so that a long conversation needs no quadratic search.
    chains: defaultdict[int, list[tuple[int, Example]]] = defaultdict(list)
    for order, example in sorted(group, key=lambda pair: len(pair[1].messages)):
        hashes = _prefix_hashes(example.messages)
        for length in range(example.trained[0], 0, -1):
            candidates = chains.get(hashes[length - 1])
            if candidates and candidates[0][1].messages == example.messages[:length]:
                first_order, chain = candidates.pop(0)
                order = min(order, first_order)
                example = example._replace(trained=chain.trained + example.trained, line=min(chain.line, example.line))
                break
        chains[hashes[-1]].append((order, example))
    return [pair for pairs in chains.values() for pair in pairs]


def _prefix_hashes(messages: Sequence[Message]) -> list[int]:
    hashes: list[int] = []
    last = 0
    for message in messages:
        last = hash((last, message))
        hashes.append(last)
    return hashes
