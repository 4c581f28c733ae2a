"""Turns parsed JSON values into training examples, and counts what it finds. One value may hold many examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_conversations.errors import BadValueError, LineError
from lora_conversations.examples import ROLES, SYSTEM, Draft, Example, Repair, kind
from lora_conversations.formats import (
    KNOWN_SHAPES,
    READERS,
    Format,
    conversation_identity,
    detect_format,
    is_turn,
    lists_examples,
    read_bare_turns,
    unknown_format,
)
from lora_conversations.identity import continues, opening_of
from lora_conversations.keys import AROUND_PAIRS, OUTER_KEYS
from lora_conversations.learning import Learner
from lora_conversations.pairs import CONVERSATIONS, read_preference
from lora_conversations.preferences import Preference, Rating, Sample
from lora_conversations.thoughts import REASONING
from lora_conversations.tools import TOOL_LISTS, ToolList, ToolReader, as_object, is_unset
from lora_conversations.turns import Value, weight_of
from lora_conversations.unused import UnusedKeys

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

CONTAINERS = ("conversations", "data", "examples", "rows", "items", "records", "samples", "dataset")
"""Keys under which an object may hold a list of examples."""
_ONE_LIST = "Put all examples into one list."
_NESTED = "Write each example as an object, such as messages with its turns."


_EACH = "Write it into each example."
_OF_ANSWER: frozenset[Format] = frozenset({"brightrun", "alpaca", "question_answer", "prompt_completion"})
"""Formats whose rows have one answer, so that a thought may stand beside it in the row."""


class ValueReader:
    """Turns the values of one dataset into samples, and counts formats, repairs and what is left out."""

    def __init__(self, method: Method | None = "sft") -> None:
        self.formats: Counter[Format] = Counter()
        """Rows by format."""
        self.skipped = 0
        """Pairs without an answer (`target_response` null)."""
        self.first_skipped_line = 0
        self.unwanted = 0
        """Examples that the file marks as not to be learned (`weight` 0, `train` or `loss` false)."""
        self.first_unwanted_line = 0
        self.repairs: Counter[Repair] = Counter()
        self.unused = UnusedKeys()
        self.learner = Learner(method, self.repairs)
        self._tools = ToolReader()
        self._last: Sample | None = None

    def read(self, value: object, line: int, key: str = "") -> list[Sample | LineError]:
        """Return the samples of a line, of an element, or of a whole file. `key` is its path in the document."""
        try:
            return self._open(value, line, key)
        except BadValueError as error:
            return [_line_error(error, line, key)]

    def read_outer_keys(self, names: Iterable[str], line: int, container: str) -> list[LineError]:
        """Check the keys of an object around a list of examples, after these were read one by one.

        Returns an error if the object holds an example, tools or reasoning beside the list; other keys are counted.
        """
        try:
            self._check_outer_keys(dict.fromkeys(names, True), line, container)
        except BadValueError as error:
            return [_line_error(error, line, "")]
        return []

    def _check_outer_keys(self, outer: Value, line: int, container: str) -> None:
        if detect_format(outer) is not None:
            raise BadValueError(None, f"holds an example beside the list {container}", _ONE_LIST)
        _check_outside(outer, TOOL_LISTS)
        self.unused.count(outer, OUTER_KEYS | {container}, line)

    def _open(self, value: object, line: int, key: str) -> list[Sample | LineError]:
        if isinstance(value, list) and value and is_turn(value[0]):
            samples = self._finish("turns", read_bare_turns(value), {}, line)
            self.unused.look_at_turns(value, "[]", line, self._method_for(samples))
            return samples
        if not isinstance(value, dict):
            raise BadValueError(None, f"is {kind(value)}, not an object", KNOWN_SHAPES if key == "" else _NESTED)
        if value.keys() == {"_meta"}:
            return []  # BrightRun's header line; its total_pairs is not used, since it can be twice the real number
        form = "brightrun" if "training_pairs" in value else detect_format(value)
        container = _container(value, form) if not key.startswith(CONTAINERS) else None
        if form is None and container is None:
            raise unknown_format(value)
        weight = weight_of(value)
        if weight == 0:
            return self._leave_out(line)
        if container is not None or "training_pairs" in value:
            _check_whole_weight(weight)
        if container is not None:
            return self._open_container(value, container, line, key)
        if "training_pairs" in value:
            return self._open_conversation(value, line, key)
        assert form is not None, "a value that is neither an example nor a container was refused above"
        return self._read(form, value, line, weight)

    def _open_container(self, value: Value, container: str, line: int, key: str) -> list[Sample | LineError]:
        self._check_outer_keys({name: value[name] for name in value if name != container}, line, container)
        return [
            sample
            for index, item in enumerate(value[container])
            for sample in self.read(item, line, f"{key}{'.' * bool(key)}{container}[{index}]")
        ]

    def _open_conversation(self, value: Value, line: int, key: str) -> list[Sample | LineError]:
        pairs = value["training_pairs"]
        if not isinstance(pairs, list):
            raise BadValueError("training_pairs", f"is {kind(pairs)}, not a list")
        first = as_object(pairs[0]) if pairs else {}
        if "synthesized_output" in first or "user_input" in first:
            return self._read("brightrun_v3", value, line)
        _check_outside(value, TOOL_LISTS)
        self.unused.count(value, AROUND_PAIRS, line)
        samples: list[Sample | LineError] = []
        enclosing = _Enclosing(conversation_identity(value))
        for index, pair in enumerate(pairs):
            try:
                samples += self._read_pair(pair, line, enclosing)
            except BadValueError as error:
                place = f"training_pairs[{index}]"
                samples.append(_line_error(error, line, f"{key}.{place}" if key else place))
        return samples

    def _read_pair(self, pair: Any, line: int, enclosing: _Enclosing) -> list[Sample | LineError]:
        weight = weight_of(as_object(pair))
        if weight == 0:
            return self._leave_out(line)
        return self._read("brightrun", pair, line, weight, enclosing)

    def _read(
        self, form: Format, value: Value, line: int, weight: float = 1.0, enclosing: _Enclosing | None = None
    ) -> list[Sample | LineError]:
        draft = read_preference(value) if form == "preference" else READERS[form](value)
        if draft is None:
            self.skipped += 1
            self.first_skipped_line = self.first_skipped_line or line
            return []
        if form not in _OF_ANSWER or (form == "prompt_completion" and isinstance(value.get("completion"), list)):
            _check_outside(value)
        samples = self._finish(form, draft, value, line, weight, enclosing)
        self.unused.look(form, value, line, self._method_for(samples))
        return samples

    def _method_for(self, samples: Sequence[Sample | LineError]) -> Method:
        """Return the method that learns from a row; where none was chosen, the one that fits what was read."""
        if self.learner.method is not None:
            return self.learner.method
        kind = type(samples[0]) if samples else Example
        return "dpo" if kind is Preference else "kto" if kind is Rating else "sft"

    def _finish(
        self,
        form: Format,
        draft: Draft,
        row: Value,
        line: int,
        weight: float = 1.0,
        enclosing: _Enclosing | None = None,
    ) -> list[Sample | LineError]:
        if draft.unwanted:
            return self._leave_out(line)
        samples = self.learner.samples(draft, row, line, self._tools_of(row), weight)
        self.formats[form] += 1
        if enclosing is not None:
            return [enclosing.place(sample) for sample in samples]
        return [self._place(sample) for sample in samples]

    def _tools_of(self, row: Value) -> ToolList | None:
        """Return the tools that a row lists, itself or in the `input` of a pair.

        Raises:
            BadValueError: a list of tools is not valid, or there are two different ones.
        """
        found: ToolList | None = None
        for holder, place in _holders_of_tools(row):
            for name in TOOL_LISTS:
                if name not in holder or is_unset(holder[name]):
                    continue
                tools = self._tools.read(holder[name], f"{place}{name}")
                if found is not None and found != tools:
                    raise BadValueError(f"{place}{name}", "is a second list of tools", "Keep one of the two.")
                found = tools
        return found

    def _place(self, sample: Sample) -> Sample:
        """Give a sample the opening of its conversation, which may have begun with the sample before it in the file."""
        last = self._last
        opening = opening_of(last if last is not None and continues(sample, last) else sample)
        self._last = sample._replace(opening=opening)
        return self._last

    def _leave_out(self, line: int) -> list[Sample | LineError]:
        self.unwanted += 1
        self.first_unwanted_line = self.first_unwanted_line or line
        return []


def _holders_of_tools(row: Value) -> Iterator[tuple[Value, str]]:
    """Yield the objects that may list a row's tools, each with its path: also a system message at the beginning."""
    yield row, ""
    if isinstance(inner := row.get("input"), dict):
        yield inner, "input."
    for name in CONVERSATIONS:
        items = row.get(name)
        first = as_object(items[0]) if isinstance(items, list) and items else {}
        if len(first) > 2 and ROLES.get(str(first.get("role", first.get("from")))) == SYSTEM:
            yield first, f"{name}[0]."


def _check_outside(value: Value, names: Iterable[str] = ()) -> None:
    """Refuse tools around a list of examples, and reasoning that stands beside no answer: nobody knows whose it is.

    Raises:
        BadValueError: the object has such a key with a value.
    """
    for name in names:
        if not is_unset(value.get(name)):
            raise BadValueError(name, "is a list of tools outside of the examples", _EACH)
    for name in () if value.keys().isdisjoint(REASONING) else REASONING:
        if not is_unset(value.get(name)):
            raise BadValueError(name, "is reasoning outside of an answer", "Write it into the answer that it led to.")


def _check_whole_weight(weight: float) -> None:
    if weight != 1:
        raise BadValueError("weight", "is a weight outside of the examples", _EACH)


class _Enclosing:
    """An object that holds the pairs of one conversation: they all get its id, and the opening of the first pair."""

    def __init__(self, identity: str | None) -> None:
        self._identity = identity
        self._opening: str | None = None

    def place(self, example: Sample) -> Sample:
        """Give a pair the id and opening of this conversation. The pair's own id is used only if that has none."""
        if self._opening is None:
            self._opening = opening_of(example)
        identity = example.conversation_id if self._identity is None else self._identity
        return example._replace(conversation_id=identity, opening=self._opening)


def two_lists(one: str, other: str) -> tuple[str, str]:
    """Return error and suggestion for an object around two lists of examples."""
    return f"holds two lists, {one} and {other}", _ONE_LIST


def _container(value: Value, form: Format | None) -> str | None:
    """Return the key under which an object holds a list of examples; None if the object is itself an example.

    Raises:
        BadValueError: the object has several such lists.
    """
    if form not in (None, "sharegpt"):
        return None
    lists = [key for key in CONTAINERS if value.get(key) and lists_examples(value[key])]
    if form == "sharegpt" and "conversations" not in lists:
        return "conversations" if value["conversations"] == [] else None
    if len(lists) > 1:
        raise BadValueError(None, *two_lists(*lists[:2]))
    return lists[0] if lists else None


def _line_error(error: BadValueError, line: int, key: str) -> LineError:
    separator = "" if (error.key or "").startswith("[") else "."
    place = f"{key}{separator}{error.key}" if key and error.key else error.key or key or None
    return LineError(line, place, error.error, error.suggestion)
