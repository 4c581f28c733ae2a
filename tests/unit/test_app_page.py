"""The page on the application answers every recorded fault, with a test that there is or with a reason."""

from __future__ import annotations

import ast
import re

import pytest

from tests.project import ROOT

FAULTS = range(1, 62)
LINES = re.findall(
    r"^- fault (\d+): (.+?)(?=^- fault |^#|\Z)", (ROOT / "docs/app.md").read_text(), re.MULTILINE | re.DOTALL
)
REASON = re.compile(r"Not ours: \S.{20,}", re.DOTALL)


def _tests() -> set[str]:
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(f"{path.name}::{node.name}")
    return found


TESTS = _tests()


def test_each_fault_stands_on_the_page_once() -> None:
    assert [int(number) for number, _ in LINES] == list(FAULTS)


@pytest.mark.parametrize(("number", "line"), LINES, ids=[f"fault {number}" for number, _ in LINES])
def test_a_fault_has_a_test_that_there_is_or_a_reason(number: str, line: str) -> None:
    named = set(re.findall(r"`(test_\w+\.py::test_\w+)`", line))
    assert named <= TESTS
    assert any(f"fault_{int(number):02}" in test for test in named) or REASON.search(line)


def test_a_test_that_carries_a_faults_number_stands_on_its_line() -> None:
    for number, line in LINES:
        for test in TESTS:
            if f"fault_{int(number):02}" in test and test.startswith("test_contract.py"):
                assert f"`{test}`" in line
