"""The pages that are made from the code are up to date, and the README's links lead somewhere."""

from __future__ import annotations

import re

import pytest

from scripts.reference import DOCS, pages
from tests.project import ROOT

_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize("name", ["cli.md", "settings.md"])
def test_reference_page_is_as_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text() == pages()[name], "run `make reference` and commit the page"


def test_links_of_the_readme_lead_to_files() -> None:
    links = _LINK.findall((ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    missing = [page.name for page in DOCS.glob("*.md") if f": {page.name}\n" not in navigation]
    assert missing == []
