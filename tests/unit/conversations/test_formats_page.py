"""The page on formats describes what the reader does."""

from __future__ import annotations

import re

import pytest

from lora_conversations.errors import LineError
from lora_conversations.keys import OUTER_KEYS, ROLE_KEYS, ROW_KEYS, TURN_KEYS, V3_PAIR_KEYS
from lora_conversations.reader import read_samples
from lora_conversations.thoughts import REASONING
from lora_conversations.values import CONTAINERS
from lora_conversations.verdicts import MARKS
from tests.corpus import CASES
from tests.corpus.readings import READINGS
from tests.project import ROOT

PAGE = (ROOT / "docs" / "formats.md").read_text()
BLOCKS = re.findall(r"### (.+?)\n.*?```jsonl?\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_every_example_on_the_page_is_read(title: str, block: str) -> None:
    samples = list(read_samples([block.encode()], None))
    assert samples
    assert not [item.sentence() for item in samples if isinstance(item, LineError)]


def test_page_names_every_known_key() -> None:
    keys = {
        key
        for row in (*ROW_KEYS.values(), *TURN_KEYS.values(), *ROLE_KEYS.values(), OUTER_KEYS, V3_PAIR_KEYS)
        for key in row
    }
    keys |= {*CONTAINERS, *REASONING, *MARKS}
    assert {key for key in keys if f"`{key}`" not in PAGE and f'"{key}"' not in PAGE} == set()


def test_every_sentence_on_the_page_is_tested_by_the_corpus() -> None:
    expected = {" ".join(filter(None, case.refused)) for case in CASES if case.refused}
    expected |= {sentence for case in (*CASES, *READINGS) for sentence in case.errors}
    on_page = set(re.findall(r"^\|[^|]+\| ((?:Line|The dataset|No pair|Nothing) .+) \|$", PAGE, re.MULTILINE))
    assert len(on_page) > 20
    assert on_page <= expected
