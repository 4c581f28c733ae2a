"""Reads the pages that a newcomer follows: their commands, and the variables of the `.env`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.project import ROOT

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+#.*$")


@dataclass(frozen=True)
class Page:
    """A page of the documentation, by its path from the root of the project."""

    path: str

    @property
    def sections(self) -> dict[str, str]:
        """The sections of the second level by their heading."""
        parts = (ROOT / self.path).read_text().split("\n## ")[1:]
        return {title: text for title, _, text in (part.partition("\n") for part in parts)}

    def commands(self, *headings: str) -> list[str]:
        """The commands of these sections, in their order, without the comments behind them; of all without headings."""
        texts = [self.sections[heading] for heading in headings or self.sections]
        blocks = [content for text in texts for kind, content in _FENCED.findall(text) if kind == "bash"]
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        return [_COMMENT.sub("", line).strip() for line in lines if line.strip()]

    def variables(self) -> list[str]:
        """The names in the page's `.env`."""
        blocks = [
            content for text in self.sections.values() for kind, content in _FENCED.findall(text) if kind == "ini"
        ]
        return [line.partition("=")[0] for block in blocks for line in block.splitlines()]


QUICKSTART = Page("docs/quickstart.md")
README = Page("README.md")
