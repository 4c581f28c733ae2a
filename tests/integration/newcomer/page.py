"""Reads the quick start: its commands and the variables of its `.env`."""

from __future__ import annotations

import re

from tests.project import ROOT

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands_under(heading: str) -> list[str]:
    """The commands of a section, in their order."""
    (section,) = (text for title, text in sections() if title == heading)
    blocks = [content for kind, content in _FENCED.findall(section) if kind == "bash"]
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def all_commands() -> list[str]:
    """The commands of the whole page."""
    return [command for title, _ in sections() for command in commands_under(title)]


def variables() -> list[str]:
    """The names in the page's `.env`."""
    (block,) = (content for kind, content in _FENCED.findall(PAGE) if kind == "ini")
    return [line.partition("=")[0] for line in block.splitlines()]


def sections() -> list[tuple[str, str]]:
    """The sections of the second level, each with its heading."""
    return [(title, text) for title, _, text in (part.partition("\n") for part in PAGE.split("\n## ")[1:])]
