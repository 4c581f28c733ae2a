"""The tables, the statements and the names of tests on the documentation's pages, for tests that check them."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.project import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


@dataclass(frozen=True)
class DocumentedTest:
    """A test function: its module's path from the root, its name, and the recorded faults that it protects against."""

    path: str
    name: str
    faults: frozenset[int]

    @property
    def mention(self) -> str:
        """How a page names it."""
        return f"{Path(self.path).name}::{self.name}"


def all_tests() -> list[DocumentedTest]:
    """Every test function below `tests/`, read from the source without importing it."""
    return [test for path in sorted((ROOT / "tests").rglob("test_*.py")) for test in _tests_of(path)]


def table_under(page: str, heading: str) -> dict[str, dict[str, str]]:
    """The first table under a heading of the second level: its rows by their first cell, each by column."""
    section = page.split(f"\n## {heading}\n")[1]
    lines = section[section.index("|") :].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: dict(zip(header[1:], cells, strict=True)) for first, *cells in rows}


def sql_of_page(name: str) -> list[str]:
    """The statements that a page gives to run, in its order."""
    page = (ROOT / "docs" / name).read_text()
    return [textwrap.dedent(block) for block in re.findall(r"```sql\n(.*?)```", page, re.DOTALL)]


def _tests_of(path: Path) -> Iterator[DocumentedTest]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            numbers = frozenset(number for mark in node.decorator_list for number in _faults(mark))
            yield DocumentedTest(str(path.relative_to(ROOT)), node.name, numbers)


def _faults(decorator: ast.expr) -> list[int]:
    """The numbers of a `@pytest.mark.fault(...)`; of any other decorator, none."""
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
        return [ast.literal_eval(number) for number in decorator.args]
    return []
