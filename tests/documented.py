"""The tables of our pages, for tests that hold them against what is."""

from __future__ import annotations


def table_under(page: str, heading: str) -> dict[str, dict[str, str]]:
    """The first table under a heading of the second level: its rows by their first cell, each by column."""
    section = page.split(f"\n## {heading}\n")[1]
    lines = section[section.index("|") :].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: dict(zip(header[1:], cells, strict=True)) for first, *cells in rows}
