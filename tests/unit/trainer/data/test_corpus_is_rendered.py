"""Each family of templates learns every accepted file of the corpus whole, or refuses it with a sentence."""

from __future__ import annotations

import pytest

from lora_conversations.errors import LineError
from lora_conversations.examples import Example
from lora_conversations.preferences import Preference, Sample
from lora_conversations.reader import read_samples
from lora_trainer.data.chat import Chat
from tests.corpus.readings import READINGS
from tests.unit.trainer.data.chats import chat_for
from tests.unit.trainer.tokenizers import TEMPLATES

pytestmark = pytest.mark.gpu_stack

SAMPLES = [
    item
    for reading in READINGS
    for item in read_samples([reading.content], reading.method)
    if not isinstance(item, LineError)
]
MOST_REFUSED_WITH_TOOLS = 0.06


def learns_all(chat: Chat, sample: Sample) -> bool:
    """Whether all answers of a sample get tokens of their own."""
    if isinstance(sample, Example):
        rows = chat.rows(sample.messages, list(sample.trained), tools=sample.tools, weights=sample.weights)
        return sum(row.answers for row in rows) == len(sample.trained)
    sides = [sample.chosen, sample.rejected] if isinstance(sample, Preference) else [sample.messages[-1:]]
    prompt = sample.prompt if isinstance(sample, Preference) else sample.messages[:-1]
    rendered = [chat.continuation(prompt, side, tools=sample.tools) for side in sides]
    return all(continuation is not None and continuation[1] for continuation in rendered)


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_accepted_file_is_learned_or_refused_with_a_sentence(name: str) -> None:
    chat, _ = chat_for(name)
    refused = [sample for sample in SAMPLES if chat.refuse(sample)]
    assert all(learns_all(chat, sample) for sample in SAMPLES if sample not in refused)
    if chat.rendering.takes_tools:
        assert len(refused) <= MOST_REFUSED_WITH_TOOLS * len(SAMPLES)
    else:
        assert {sample.has_tools for sample in refused} == {True}
        assert sum(sample.has_tools for sample in SAMPLES) == len(refused)
