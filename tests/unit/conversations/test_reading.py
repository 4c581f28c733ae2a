"""What is learned from each accepted file, by which method, and with which sentence other files are refused."""

from __future__ import annotations

import pytest

from lora_conversations.errors import LineError
from lora_conversations.reader import read_samples
from lora_conversations.survey import Surveyor
from tests.corpus.reading import Reading, say
from tests.corpus.readings import READINGS


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.name.replace(" ", "-"))
def test_each_file_teaches_what_it_says_or_gets_its_sentence(reading: Reading) -> None:
    found = list(read_samples([reading.content], reading.method))
    assert tuple(item.sentence() for item in found if isinstance(item, LineError)) == reading.errors
    assert tuple(say(item) for item in found if not isinstance(item, LineError)) == reading.learned
    surveyor = Surveyor(method=reading.method)
    surveyor.feed(reading.content)
    surveyor.close()
    assert tuple(note.text for note in surveyor.result().notes if not note.harmless) == reading.notes
