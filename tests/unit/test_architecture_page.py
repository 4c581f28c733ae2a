"""docs/architecture.md is current: each promise names existing tests, and every room is on the map."""

from __future__ import annotations

import re

import pytest

from tests.documented import table_under
from tests.project import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()
PROMISES = table_under(PAGE, "The promises, and what holds them")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LAST_PROMISE = 23


def test_every_promise_is_listed_once() -> None:
    assert list(PROMISES) == [str(number) for number in range(1, LAST_PROMISE + 1)]


@pytest.mark.parametrize("number", PROMISES)
def test_each_promise_names_tests_that_exist(number: str) -> None:
    named = re.findall(r"`([^`]+)`", PROMISES[number]["tests"])
    assert named
    for name in named:
        if name.startswith("make "):
            assert name.removeprefix("make ") in TARGETS
            continue
        file, _, test = name.partition("::")
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test or 'test_'}" in path.read_text()


@pytest.mark.parametrize("package", ["worker/lora_worker", "trainer/lora_trainer"])
def test_every_room_is_on_the_map(package: str) -> None:
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert rooms
    missing = {room for room in rooms if f"| `{room}` |" not in PAGE}
    assert not missing
