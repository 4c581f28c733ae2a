"""The page on formats describes what the reader does."""

from __future__ import annotations

import re

import pytest

from lora_conversations.keys import OUTER_KEYS, ROW_KEYS, TURN_KEYS, V3_PAIR_KEYS
from lora_conversations.reader import Example, read_examples
from lora_conversations.turns import REASONING
from lora_conversations.values import CONTAINERS
from tests.corpus import CASES
from tests.project import ROOT

PAGE = (ROOT / "docs" / "formats.md").read_text()
BLOCKS = re.findall(r"### (.+?)\n.*?```jsonl?\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_every_example_on_the_page_is_read(title: str, block: str) -> None:
    examples = list(read_examples([block.encode()]))
    assert examples
    assert all(isinstance(example, Example) for example in examples)


def test_page_names_every_known_key() -> None:
    keys = {key for row in (*ROW_KEYS.values(), *TURN_KEYS.values(), OUTER_KEYS, V3_PAIR_KEYS) for key in row}
    keys |= {*CONTAINERS, *REASONING}
    assert {key for key in keys if f"`{key}`" not in PAGE and f'"{key}"' not in PAGE} == set()


def test_every_sentence_on_the_page_is_tested_by_the_corpus() -> None:
    expected = {" ".join(filter(None, case.refused)) for case in CASES if case.refused}
    expected |= {sentence for case in CASES for sentence in case.errors}
    on_page = set(re.findall(r"^\|[^|]+\| ((?:Line|The dataset|No pair|Nothing) .+) \|$", PAGE, re.MULTILINE))
    assert len(on_page) > 20
    assert on_page <= expected
