"""From a parsed JSON value to examples: opens what holds many, and counts what it meets on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from lora_conversations.errors import BadValueError
from lora_conversations.examples import (
    Draft,
    Example,
    LineError,
    Repair,
    arrange,
    kind,
)
from lora_conversations.formats import (
    KNOWN_SHAPES,
    READERS,
    Format,
    conversation_identity,
    is_turn,
    lists_examples,
    read_bare_turns,
    tell,
    unknown_format,
)
from lora_conversations.identity import continues, opening_of
from lora_conversations.keys import ANY_ROW, OUTER_KEYS, UnusedKeys
from lora_conversations.turns import Value, as_object, check_beside_text, is_wanted

CONTAINERS = ("conversations", "data", "examples", "rows", "items", "records", "samples", "dataset")
"""Keys of an object around a list of examples."""
_ONE_LIST = "Put all examples into one list."
_NESTED = "Write each example as an object, such as messages with its turns."


class ValueReader:
    """Turns values into examples and counts, over a whole dataset, what it met on the way."""

    def __init__(self) -> None:
        self.formats: Counter[Format] = Counter()
        """Examples by format."""
        self.skipped = 0
        """Pairs without an answer (`target_response` null)."""
        self.unwanted = 0
        """Examples that ask not to be learned (`weight` 0, `train` or `loss` false)."""
        self.first_unwanted_line = 0
        self.repairs: Counter[Repair] = Counter()
        self.unused = UnusedKeys()
        self._last: Example | None = None

    def read(self, value: object, line: int, key: str = "") -> list[Example | LineError]:
        """The examples of one line, one element, or one whole file. `key` is its place in its document."""
        try:
            return self._open(value, line, key)
        except BadValueError as error:
            return [_line_error(error, line, key)]

    def read_around(self, names: Iterable[str], line: int, container: str) -> list[LineError]:
        """Count the keys around a list of examples that were read one by one, or refuse what is lost with them."""
        try:
            self._check_around(dict.fromkeys(names, True), line, container)
        except BadValueError as error:
            return [_line_error(error, line, "")]
        return []

    def _check_around(self, around: Value, line: int, container: str) -> None:
        if tell(around) is not None:
            raise BadValueError(None, f"holds an example beside the list {container}", _ONE_LIST)
        check_beside_text(around)
        self.unused.count(around, OUTER_KEYS | {container}, line)

    def _open(self, value: object, line: int, key: str) -> list[Example | LineError]:
        if isinstance(value, list) and value and is_turn(value[0]):
            examples = self._finish("turns", read_bare_turns(value), line)
            self.unused.look_at_turns(value, "", line)
            return examples
        if not isinstance(value, dict):
            raise BadValueError(None, f"is {kind(value)}, not an object", KNOWN_SHAPES if key == "" else _NESTED)
        if value.keys() == {"_meta"}:
            return []  # BrightRun's header; its total_pairs was seen to be twice the truth
        form = "brightrun" if "training_pairs" in value else tell(value)
        container = _container(value, form) if not key.startswith(CONTAINERS) else None
        if form is None and container is None:
            raise unknown_format(value)
        if not is_wanted(value):
            return self._leave_out(line)
        if container is not None:
            return self._open_container(value, container, line, key)
        if "training_pairs" in value:
            return self._open_conversation(value, line, key)
        assert form is not None, "what is neither is refused above"
        return self._read(form, value, line)

    def _open_container(self, value: Value, container: str, line: int, key: str) -> list[Example | LineError]:
        self._check_around({name: value[name] for name in value if name != container}, line, container)
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
    """A conversation that holds its pairs: all have its id, and begin as the first of them does."""

    def __init__(self, identity: str | None) -> None:
        self._identity = identity
        self._opening: str | None = None

    def place(self, example: Example) -> Example:
        """The pair as a part of this conversation. Its own `conversation_id` may only name a kind."""
        if self._opening is None:
            self._opening = opening_of(example)
        identity = example.conversation_id if self._identity is None else self._identity
        return example._replace(conversation_id=identity, opening=self._opening)


def two_lists(one: str, other: str) -> tuple[str, str]:
    """Error and suggestion for an object around two lists of examples."""
    return f"holds two lists, {one} and {other}", _ONE_LIST


def _container(value: Value, form: Format | None) -> str | None:
    """The key of the list of examples that an object is made around; None for an example itself.

    Raises:
        BadValueError: there are several.
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
