"""Turns parsed JSON values into training examples, and counts what it finds. One value may hold many examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from lora_conversations.errors import BadValueError, LineError
from lora_conversations.examples import Draft, Example, Repair, arrange, kind
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
from lora_conversations.keys import ANY_ROW, OUTER_KEYS, UnusedKeys
from lora_conversations.turns import Value, as_object, check_beside_text, is_wanted

CONTAINERS = ("conversations", "data", "examples", "rows", "items", "records", "samples", "dataset")
"""Keys under which an object may hold a list of examples."""
_ONE_LIST = "Put all examples into one list."
_NESTED = "Write each example as an object, such as messages with its turns."


class ValueReader:
    """Turns the values of one dataset into examples, and counts formats, repairs and what is left out."""

    def __init__(self) -> None:
        self.formats: Counter[Format] = Counter()
        """Examples by format."""
        self.skipped = 0
        """Pairs without an answer (`target_response` null)."""
        self.unwanted = 0
        """Examples that the file marks as not to be learned (`weight` 0, `train` or `loss` false)."""
        self.first_unwanted_line = 0
        self.repairs: Counter[Repair] = Counter()
        self.unused = UnusedKeys()
        self._last: Example | None = None

    def read(self, value: object, line: int, key: str = "") -> list[Example | LineError]:
        """Return the examples of a line, of an element, or of a whole file. `key` is its path in the document."""
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
        check_beside_text(outer)
        self.unused.count(outer, OUTER_KEYS | {container}, line)

    def _open(self, value: object, line: int, key: str) -> list[Example | LineError]:
        if isinstance(value, list) and value and is_turn(value[0]):
            examples = self._finish("turns", read_bare_turns(value), line)
            self.unused.look_at_turns(value, "", line)
            return examples
        if not isinstance(value, dict):
            raise BadValueError(None, f"is {kind(value)}, not an object", KNOWN_SHAPES if key == "" else _NESTED)
        if value.keys() == {"_meta"}:
            return []  # BrightRun's header line; its total_pairs is not used, since it can be twice the real number
        form = "brightrun" if "training_pairs" in value else detect_format(value)
        container = _container(value, form) if not key.startswith(CONTAINERS) else None
        if form is None and container is None:
            raise unknown_format(value)
        if not is_wanted(value):
            return self._leave_out(line)
        if container is not None:
            return self._open_container(value, container, line, key)
        if "training_pairs" in value:
            return self._open_conversation(value, line, key)
        assert form is not None, "a value that is neither an example nor a container was refused above"
        return self._read(form, value, line)

    def _open_container(self, value: Value, container: str, line: int, key: str) -> list[Example | LineError]:
        self._check_outer_keys({name: value[name] for name in value if name != container}, line, container)
        return [
            example
            for index, item in enumerate(value[container])
            for example in self.read(item, line, f"{key}{'.' * bool(key)}{container}[{index}]")
        ]

    def _open_conversation(self, value: Value, line: int, key: str) -> list[Example | LineError]:
        pairs = value["training_pairs"]
        if not isinstance(pairs, list):
            raise BadValueError("training_pairs", f"is {kind(pairs)}, not a list")
        first = as_object(pairs[0]) if pairs else {}
        if "synthesized_output" in first or "user_input" in first:
            return self._read("brightrun_v3", value, line)
        check_beside_text(value)
        self.unused.count(value, OUTER_KEYS | ANY_ROW | {"training_pairs"}, line)
        examples: list[Example | LineError] = []
        enclosing = _Enclosing(conversation_identity(value))
        for index, pair in enumerate(pairs):
            try:
                examples += self._read_pair(pair, line, enclosing)
            except BadValueError as error:
                place = f"training_pairs[{index}]"
                examples.append(_line_error(error, line, f"{key}.{place}" if key else place))
        return examples

    def _read_pair(self, pair: Any, line: int, enclosing: _Enclosing) -> list[Example | LineError]:
        if isinstance(pair, dict) and not is_wanted(pair):
            return self._leave_out(line)
        return self._read("brightrun", pair, line, enclosing)

    def _read(
        self, form: Format, value: Value, line: int, enclosing: _Enclosing | None = None
    ) -> list[Example | LineError]:
        draft = READERS[form](value)
        if draft is None:
            self.skipped += 1
            return []
        check_beside_text(value)
        examples = self._finish(form, draft, line, enclosing)
        self.unused.look(form, value, line)
        return examples

    def _finish(
        self, form: Format, draft: Draft, line: int, enclosing: _Enclosing | None = None
    ) -> list[Example | LineError]:
        if draft.unwanted:
            return self._leave_out(line)
        messages, trained = arrange(draft, self.repairs)
        self.formats[form] += 1
        example = Example(messages, trained, draft.conversation_id, line)
        if enclosing is not None:
            return [enclosing.place(example)]
        last = self._last
        opening = opening_of(last if last is not None and continues(example, last) else example)
        self._last = Example(messages, trained, draft.conversation_id, line, opening)
        return [self._last]

    def _leave_out(self, line: int) -> list[Example | LineError]:
        self.unwanted += 1
        self.first_unwanted_line = self.first_unwanted_line or line
        return []


class _Enclosing:
    """An object that holds the pairs of one conversation: they all get its id, and the opening of the first pair."""

    def __init__(self, identity: str | None) -> None:
        self._identity = identity
        self._opening: str | None = None

    def place(self, example: Example) -> Example:
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
