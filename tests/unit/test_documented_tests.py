"""The tests that the documentation names exist, so that a promise never points at a test that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documented import PAGES, all_tests
from tests.project import ROOT

TESTS = all_tests()
MENTIONS = {test.mention for test in TESTS}
MODULES = {Path(test.path).name for test in TESTS}
LONGEST_NAME = 70


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"\btest_\w+\.py::test_\w+", text)) <= MENTIONS
    assert set(re.findall(r"\btest_\w+\.py\b", text)) <= MODULES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_below_tests_that_a_page_names_exists(page: Path) -> None:
    paths = re.findall(r"\btests/[\w/]+(?:\.\w+)?", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_function_on_a_page_is_named_with_its_module(page: Path) -> None:
    assert re.findall(r"(?<!::)\btest_\w+\b(?!\.py|\w)", page.read_text()) == []


def test_names_of_tests_are_short_enough_to_read() -> None:
    assert [test.mention for test in TESTS if len(test.name) > LONGEST_NAME] == []
