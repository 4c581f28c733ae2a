"""Counts what a dataset contains while its bytes arrive: the figures of its row, its sha256, and a sample.

The worker uses it for validation and preflight, and the trainer for training. So all three count the same things, and
agree on when a dataset has too many bad lines.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_contract.words import counted
from lora_conversations.errors import DatasetUnusableError, LineError
from lora_conversations.examples import Message, Repair, call_texts
from lora_conversations.identity import conversation_key
from lora_conversations.learning import Remark
from lora_conversations.preferences import Preference, Rating, Sample
from lora_conversations.reader import ERRORS_KEPT, SYSTEM, Example, ExampleParser
from lora_conversations.unused import UnusedKey, unused_keys_note

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

SAMPLE_CONVERSATIONS = 3
_SAMPLE_MESSAGES = 20
_SAMPLE_CHARACTERS = 1000
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_OTHER_LINES = 4


class Note(NamedTuple):
    """A sentence about data that is left out or changed, and the line where this happens first.

    `harmless` means that the user loses nothing by it.
    """

    text: str
    line: int = 1
    harmless: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """The counted content of a whole dataset."""

    format: str | None
    """The format of most examples."""
    bytes: int
    sha256: str
    examples: int
    answers: int
    """Answers that are learned. There are more of them than `examples` if one example has several."""
    conversations: int
    skipped: int
    """Pairs without an answer. They are not counted as bad."""
    bad: int
    """Lines or elements that can't be used."""
    errors: tuple[LineError, ...]
    """The errors of the first bad lines, at most `ERRORS_KEPT`."""
    turns_per_conversation: float
    """Average number of user and assistant turns in the longest example of each conversation."""
    tokens: int
    """Estimated tokens (`estimate_tokens`) of all examples, each with its history."""
    tokens_per_turn: float
    sample: list[dict[str, Any]]
    """The first conversations, shortened, for the column `datasets.sample_data`."""
    repairs: dict[str, int]
    """How often each `Repair` was made, by its value."""
    unwanted: int = 0
    """Examples that the file marks as not to be learned. They are not counted as bad."""
    first_unwanted_line: int = 0
    """The line of the first of them; 0 if there is none."""
    unused_keys: tuple[UnusedKey, ...] = ()
    method: Method | None = "sft"
    """The method for which the dataset was read; None if it was read without one."""
    remarks: tuple[Note, ...] = ()
    """What the method does with rows that were made for another one."""
    pairs: int = 0
    """Examples that are pairs of answers, for `dpo`."""
    thumbs_up: int = 0
    """Examples that are answers with a thumb up, for `kto`."""
    thumbs_down: int = 0
    with_tools: int = 0
    """Examples that need a base whose chat template knows tools."""
    with_thoughts: int = 0
    """Examples with reasoning before an answer."""

    @property
    def notes(self) -> list[Note]:
        """Describe in a few sentences what training leaves out or changes."""
        notes = []
        if self.unwanted:
            text = f"Left out: {counted(self.unwanted, 'example')} with weight 0, train false or loss false."
            notes.append(Note(text, self.first_unwanted_line))
        notes += [*self.remarks, *self._method_notes()]
        if self.unused_keys:
            notes.append(Note(unused_keys_note(self.unused_keys), min(key.line for key in self.unused_keys)))
        if self.skipped:
            notes.append(Note(f"Left out: {counted(self.skipped, 'pair')} whose target_response is null."))
        for repair, count in self.repairs.items():
            # The application writes the question of each pair twice, so dropping one of them loses nothing.
            harmless = repair == Repair.DOUBLED_USER_TURN
            notes.append(Note(f"Put right: {repair} ({count:,} ×).", harmless=harmless))
        return notes

    def _method_notes(self) -> list[Note]:
        """Say which method learns from a dataset, if none was chosen yet."""
        if self.method is not None:
            return []
        notes = []
        if self.pairs:
            what = counted(self.pairs, "pair")
            notes.append(Note(f"Holds {what} of a better and a worse answer: method dpo learns from both."))
        if thumbs := self.thumbs_up + self.thumbs_down:
            what = counted(thumbs, "answer")
            notes.append(Note(f"Holds {what} with a thumb ({self.thumbs_up:,} up): method kto learns from them."))
        return notes

    def check(self, max_bad_line_share: float) -> None:
        """Refuse the dataset if too much of it is bad. Otherwise its bad lines are skipped.

        Raises:
            DatasetUnusableError: no example is usable, more than `max_bad_line_share` (0 to 1) of them is bad, or all
                thumbs are the same, although the method needs both.
        """
        if self.examples == 0 and self.bad == 0:
            raise _no_example(self)
        total = self.examples + self.bad
        if self.examples and self.bad <= max_bad_line_share * total:
            self._check_thumbs()
            return
        first = self.errors[0]
        if self.bad == 1:
            message = first._replace(suggestion=None).sentence()
            raise DatasetUnusableError(message, first.suggestion, self.errors)
        message = (
            f"{self.bad:,} of {total:,} examples of the dataset can't be used ({max_bad_line_share:.0%} may be bad). "
            f"{first._replace(suggestion=None).sentence()}{self._other_lines()}"
        )
        raise DatasetUnusableError(message, first.suggestion, self.errors)

    def _check_thumbs(self) -> None:
        if self.method == "kto" and not (self.thumbs_up and self.thumbs_down):
            kind = "up" if self.thumbs_up else "down"
            raise DatasetUnusableError(
                f"All thumbs of the dataset are {kind} ({self.examples:,}), and method kto learns from the difference.",
                "Add answers with the other thumb, or train the good ones with method sft.",
            )

    def _other_lines(self) -> str:
        """Name a few more bad lines; the whole list would be too long for an error message."""
        lines = list(dict.fromkeys(error.line for error in self.errors if error.line != self.errors[0].line))
        named = ", ".join(map(str, lines[:_OTHER_LINES]))
        return f" Look also at {'line' if len(lines) == 1 else 'lines'} {named}." if named else ""


def _no_example(survey: Survey) -> DatasetUnusableError:
    skipped, unwanted = survey.skipped, survey.unwanted
    if unwanted:
        others = f", and {counted(skipped, 'pair')} without an answer" if skipped else ""
        return DatasetUnusableError(
            "Nothing of the dataset is to be learned: it has "
            f"{counted(unwanted, 'example')} with weight 0, train false or loss false{others}.",
            "Add at least one example that may be learned.",
        )
    if survey.remarks:
        return DatasetUnusableError(
            f"Nothing of the dataset can be learned with method {survey.method}. {survey.remarks[0].text}",
            "Add at least one example that can.",
        )
    if skipped:
        return DatasetUnusableError(
            f"No pair of the dataset has an answer: target_response is null in {counted(skipped, 'pair')}.",
            "Generate the answers first.",
        )
    return DatasetUnusableError("The dataset holds no usable pair of question and answer.", "Add at least one example.")


def estimate_tokens(text: str) -> float:
    """Estimate the tokens of a text as a quarter of its UTF-8 bytes.

    Four characters per token is the rule of thumb that OpenAI's tokenizer page gives for English. Counting bytes makes
    it usable for other scripts: a Chinese character has three bytes and takes about one token. The application's own
    validator counted 1.3 tokens per word, which finds a single word on a Chinese page; for English text the rule here
    gives about a sixth more than that.
    """
    return (len(text) if text.isascii() else len(text.encode())) / _BYTES_PER_TOKEN


Refuse = Callable[[Sample], LineError | None]
"""A check of examples that were read without error: returns the reason why one can't be used, or None."""


def accept(_: Sample) -> None:
    """Accept every example: the check that is used by default."""


class Surveyor:
    """Counts a dataset as its bytes arrive: call `feed` for each chunk, then `close`, then `result`.

    Raises, from `feed` and `close`:
        DatasetUnusableError: the file can't be read, or can't be read any further.
    """

    def __init__(self, refuse: Refuse = accept, method: Method | None = "sft") -> None:
        self._refuse = refuse
        self._method = method
        self._parser = ExampleParser(method)
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._examples = self._answers = self._messages = self._bad = 0
        self._pairs = self._thumbs_up = self._thumbs_down = self._with_tools = self._with_thoughts = 0
        self._errors: list[LineError] = []
        self._tokens = 0.0
        self._conversations = _Conversations()

    def feed(self, chunk: bytes) -> list[Sample]:
        """Count and return the examples that this chunk completes."""
        self._digest.update(chunk)
        self._bytes += len(chunk)
        return self._count(self._parser.feed(chunk))

    def close(self) -> list[Sample]:
        """Count and return the examples that the end of the file completes."""
        return self._count(self._parser.close())

    def result(self) -> Survey:
        """Return the counts so far."""
        values = self._parser.values
        return Survey(
            format=max(values.formats, key=values.formats.__getitem__, default=None),
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
            examples=self._examples,
            answers=self._answers,
            conversations=self._conversations.count(),
            skipped=values.skipped,
            bad=self._bad,
            errors=tuple(self._errors),
            turns_per_conversation=self._conversations.average_turns(),
            tokens=round(self._tokens),
            tokens_per_turn=self._tokens / self._messages if self._messages else 0.0,
            sample=self._conversations.sample(),
            repairs={repair.value: count for repair, count in values.repairs.items() if count},
            unwanted=values.unwanted,
            first_unwanted_line=values.first_unwanted_line,
            unused_keys=values.unused.result(),
            method=self._method,
            remarks=tuple(_remarks(values.learner.remarks)),
            pairs=self._pairs,
            thumbs_up=self._thumbs_up,
            thumbs_down=self._thumbs_down,
            with_tools=self._with_tools,
            with_thoughts=self._with_thoughts,
        )

    def _count(self, items: Iterator[Sample | LineError]) -> list[Sample]:
        samples: list[Sample] = []
        for found in items:
            item = found if isinstance(found, LineError) else self._refuse(found) or found
            if isinstance(item, LineError):
                self._bad += 1
                if self._bad <= ERRORS_KEPT:
                    self._errors.append(item)
            else:
                self._add(item)
                samples.append(item)
        return samples

    def _add(self, sample: Sample) -> None:
        self._examples += 1
        self._with_tools += sample.has_tools
        self._with_thoughts += sample.has_thoughts
        sequences: tuple[tuple[Message, ...], ...] = (sample.messages,)
        if isinstance(sample, Example):
            self._answers += len(sample.trained)
        else:
            self._answers += 1
        if isinstance(sample, Preference):
            self._pairs += 1
            sequences = (sample.messages, sample.prompt + sample.rejected)
        elif isinstance(sample, Rating):
            self._thumbs_up += sample.good
            self._thumbs_down += not sample.good
        for messages in sequences:
            self._tokens += sum(map(_estimate_message, messages))
            self._tokens += estimate_tokens(sample.tools) if sample.tools else 0
            self._messages += len(messages)
        self._conversations.add(sample)


def _estimate_message(message: Message) -> float:
    tokens = estimate_tokens(message.content) + _TOKENS_PER_MESSAGE
    if message.thought or message.calls:
        tokens += sum(map(estimate_tokens, (message.thought, *call_texts(message))))
    return tokens


def _remarks(found: Mapping[Remark, Sequence[int]]) -> Iterator[Note]:
    for remark, (count, line) in found.items():
        yield Note(f"{remark[0].upper()}{remark[1:]} ({count:,} ×).", line)


class _Conversations:
    """Counts conversations and their turns. Assumes that examples of one conversation stand together in the file."""

    def __init__(self) -> None:
        # A set of all conversation ids of a 500 MB file would need more memory than the worker has. So 8-byte hashes
        # are collected in 256 arrays, and `count` makes only one of these a set at a time.
        self._hashes = [array("q") for _ in range(256)]
        self._current: str | None = None
        self._longest: Sample | None = None
        self._groups = 0
        """Groups of consecutive examples that belong to the same conversation."""
        self._finished_turns = 0
        self._samples: list[Sample] = []

    def add(self, example: Sample) -> None:
        key = conversation_key(example)
        if key != self._current:
            self._finish()
            self._current = key
            digest = hash(key)
            self._hashes[digest % len(self._hashes)].append(digest)
        if self._longest is None or len(example.messages) > len(self._longest.messages):
            self._longest = example

    def _finish(self) -> None:
        if self._longest is not None:
            self._groups += 1
            self._finished_turns += _turns(self._longest)
            if len(self._samples) < SAMPLE_CONVERSATIONS:
                self._samples.append(self._longest)
        self._longest = None

    def count(self) -> int:
        return sum(len(set(part)) for part in self._hashes)

    def average_turns(self) -> float:
        self._finish()
        return self._finished_turns / self._groups if self._groups else 0.0

    def sample(self) -> list[dict[str, Any]]:
        self._finish()
        return [_shorten(example) for example in self._samples]


def _turns(example: Sample) -> int:
    return len(example.messages) - (example.messages[0].role == SYSTEM)


def _shorten(sample: Sample) -> dict[str, Any]:
    identity = sample.conversation_id
    shortened: dict[str, Any] = {
        "conversation_id": identity and _cut(identity),
        "messages": [_shorten_message(message) for message in sample.messages[:_SAMPLE_MESSAGES]],
    }
    if isinstance(sample, Preference):
        shortened["rejected"] = [_shorten_message(message) for message in sample.rejected]
    elif isinstance(sample, Rating):
        shortened["good"] = sample.good
    return shortened


def _shorten_message(message: Message) -> dict[str, Any]:
    shortened: dict[str, Any] = {"role": message.role, "content": _cut(message.content)}
    if message.thought:
        shortened["thought"] = _cut(message.thought)
    if message.calls:
        calls = message.calls[:_SAMPLE_MESSAGES]
        shortened["calls"] = [{"name": _cut(call.name), "arguments": _cut(call.arguments)} for call in calls]
    return shortened


def _cut(text: str) -> str:
    # Postgres can't store a zero character in jsonb.
    return text[:_SAMPLE_CHARACTERS].replace("\x00", "")
