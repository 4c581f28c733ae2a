"""The page on the application answers every recorded fault, with a test that exists or with a reason."""

from __future__ import annotations

import re

import pytest

from tests.documented import all_tests
from tests.project import ROOT

FAULTS = range(1, 62)
LINES = re.findall(
    r"^- fault (\d+): (.+?)(?=^- fault |^#|\Z)", (ROOT / "docs/app-faults.md").read_text(), re.MULTILINE | re.DOTALL
)
REASON = re.compile(r"Not ours: \S.{20,}", re.DOTALL)
MARKED = {test.mention: test.faults for test in all_tests() if test.faults}


def test_each_fault_is_listed_once() -> None:
    assert [int(number) for number, _ in LINES] == list(FAULTS)


@pytest.mark.parametrize(("number", "line"), LINES, ids=[f"fault {number}" for number, _ in LINES])
def test_each_fault_names_a_test_marked_with_it_or_a_reason(number: str, line: str) -> None:
    named = re.findall(r"`(test_\w+\.py::test_\w+)`", line)
    assert any(int(number) in MARKED.get(test, ()) for test in named) or REASON.search(line)


def test_each_marked_contract_test_is_named_at_its_faults() -> None:
    lines = {int(number): line for number, line in LINES}
    for test, faults in MARKED.items():
        if test.startswith("test_contract.py"):
            assert all(f"`{test}`" in lines[fault] for fault in faults), test
