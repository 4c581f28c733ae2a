"""The tables and statements of our pages, for tests that hold them against what is."""

from __future__ import annotations

import re
import textwrap

from tests.project import ROOT

_DOCS = ROOT / "docs"


def table_under(page: str, heading: str) -> dict[str, dict[str, str]]:
    """The first table under a heading of the second level: its rows by their first cell, each by column."""
    section = page.split(f"\n## {heading}\n")[1]
    lines = section[section.index("|") :].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: dict(zip(header[1:], cells, strict=True)) for first, *cells in rows}


def sql_of_page(name: str) -> list[str]:
    """The statements that a page gives to run, in its order."""
    return [textwrap.dedent(block) for block in re.findall(r"```sql\n(.*?)```", (_DOCS / name).read_text(), re.S)]
