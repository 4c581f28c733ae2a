"""Every key of every accepted file is used, or named in a note, or is one of the application's own."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conversations.errors import DatasetUnusableError, LineError
from lora_conversations.keys import BRIGHTRUN, OUTER_KEYS
from lora_conversations.reader import read_samples
from lora_conversations.survey import Surveyor
from lora_conversations.tools import is_unset
from lora_conversations.turns import FLAGS
from tests.corpus import CASES
from tests.corpus.readings import READINGS

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

Path = tuple[str | int, ...]

NAMED_ON_THE_PAGE = {
    "id",
    "turn",
    "turn_id",
    "emotional_state",
    "internal_deliberation",
    "_meta",
    *BRIGHTRUN,
    *OUTER_KEYS,
}
"""What is never learned: the application's own keys, and the number of a row. `docs/formats.md` names them."""
REMARKED = {"rejected", "non_preferred_output", "messages", "answer", "original_answer", "edited_answer"}
"""Texts of a side that the method does not learn, which a remark of the survey says."""
OTHERS: tuple[Any, ...] = ("another", 7, {"another": 1}, None)

FILES = [
    *((case.name, case.content, "sft") for case in CASES if case.examples and not case.errors and not case.refused),
    *((reading.name, reading.content, reading.method) for reading in READINGS if reading.learned),
]
ROWS = [
    (name, rows, method)
    for name, content, method in FILES
    if len(content) < 20_000 and (rows := [line for line in content.splitlines() if line.strip()])
]


def parsed(lines: list[bytes]) -> list[Any] | None:
    """The values of JSON Lines; None for a document of several lines."""
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        return None


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every key of the objects in a value, once for all elements of a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


def spelt(path: Path) -> str:
    """A path as notes spell it."""
    return re.sub(r"\.\[", "[", ".".join("[]" if isinstance(part, int) else part for part in path))


def changed(value: Any, path: Path, other: Any) -> Any:
    """A copy of a value in which something else stands at the path; None removes the key."""
    copied = copy.deepcopy(value)
    holder = copied
    for part in path[:-1]:
        holder = holder[part]
    if other is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = other
    return copied


def outcome(rows: list[Any], method: Method | None) -> object:
    try:
        found = list(read_samples(["\n".join(map(json.dumps, rows)).encode()], method))
    except DatasetUnusableError as error:
        return error.message
    # Examples of a conversation are known by how it begins, and a line error by its sentence.
    return [item.sentence() if isinstance(item, LineError) else item for item in found]


def says_what_happens(path: Path, value: Any) -> bool:
    """Whether a key only says what happens anyway, or is an id beside a better one."""
    return (path[-1] in FLAGS and not value) or path[-1] == "conversation_id"


def notes(rows: list[Any], method: Method | None) -> tuple[set[str], bool]:
    """The names of unused keys, and whether the survey remarks on a side that is not learned."""
    surveyor = Surveyor(method=method)
    surveyor.feed("\n".join(map(json.dumps, rows)).encode())
    surveyor.close()
    result = surveyor.result()
    return {key.name.removesuffix(" of a turn that is no answer") for key in result.unused_keys}, bool(result.remarks)


def is_named(path: Path, names: set[str], has_remark: bool) -> bool:
    """Whether a note or the page names a key, or an object around it."""
    around = [path[: end + 1] for end in range(len(path)) if isinstance(path[end], str)]
    if any(part[-1] in NAMED_ON_THE_PAGE or str(part[-1]).startswith("purpose_state_") for part in around):
        return True
    if has_remark and any(part[-1] in REMARKED for part in around):
        return True
    # The pairs of a conversation are rows of their own, and noted so.
    paths = {re.sub(r"^(conversations\[\]\.)?training_pairs\[\]\.", "", spelt(part)) for part in around}
    return not names.isdisjoint(paths | set(map(spelt, around))) or any("…" in name for name in names)


SINGLE = [(row, reading.method) for reading in READINGS if reading.learned and len(reading.content) < 5000
          for row in map(json.loads, reading.content.splitlines())]  # fmt: skip


def at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.data())
def test_key_of_another_row_put_anywhere_is_used_or_named(data: st.DataObject) -> None:
    row, method = data.draw(st.sampled_from(SINGLE))
    other, _ = data.draw(st.sampled_from(SINGLE))
    holders = [(), *(path for path in paths(row) if isinstance(at(row, path), dict))]
    source = data.draw(st.sampled_from(list(paths(other))))
    path = (*data.draw(st.sampled_from(holders)), source[-1])
    value = copy.deepcopy(at(other, source))
    if is_unset(value):
        return
    rows = [changed(row, path, value)]
    before = outcome(rows, method)
    if not isinstance(before, list) or not before or any(isinstance(item, str) for item in before):
        return  # refused, or left out
    if says_what_happens(path, value) or is_named(path, *notes(rows, method)):
        return
    assert any(outcome(changed(rows, (0, *path), mutant), method) != before for mutant in OTHERS if mutant != value)


@pytest.mark.parametrize(("name", "lines", "method"), ROWS, ids=[name.replace(" ", "-") for name, _, _ in ROWS])
def test_every_key_is_used_or_named_in_a_note(name: str, lines: list[bytes], method: Method | None) -> None:
    rows = parsed(lines)
    if rows is None:
        return  # a document of several lines; rows like its own stand in other files
    rows = [row for row in rows if not isinstance(row, dict) or outcome([row], method)]
    names, has_remark = notes(rows, method)
    before = outcome(rows, method)
    silent = set()
    seen: set[str] = set()
    for path in paths(rows):
        key = spelt(path[1:])
        value: Any = rows
        for part in path:
            value = value[part]
        if key in seen or is_unset(value) or says_what_happens(path, value) or is_named(path[1:], names, has_remark):
            continue
        seen.add(key)
        if all(outcome(changed(rows, path, other), method) == before for other in OTHERS if other != value):
            silent.add(key)
    assert silent == set()
