"""The fixed set of general text and chat that guards against regressions."""

from __future__ import annotations

from importlib.resources import files

import pytest

from lora_trainer.data.chat import IGNORED, Chat
from lora_trainer.data.general import MOST_TOKENS, chats, general_prompts, general_rows, passages
from tests.unit.trainer.tokenizers import tokenizer_with

pytestmark = pytest.mark.gpu_stack


def test_set_is_whole_and_says_its_licence():
    source = (files("lora_trainer.data") / "general.toml").read_text(encoding="utf-8")
    assert "CC0 1.0" in source.partition("[[")[0]
    assert (len(set(passages())), len(set(chats()))) == (20, 20)
    assert all(0 < len(text) < 400 and text == text.strip() for text in (*passages()[:7], *passages()[8:]))


@pytest.mark.parametrize("name", ["chatml", "mistral_v0_3", "smollm2"])
def test_every_text_is_measured_with_any_template(name):
    tokenizer = tokenizer_with(name)
    chat = Chat(tokenizer)
    whole = general_rows(chat, tokenizer, 10_000)
    assert len(whole) == 40
    for row in whole:
        assert row.labels[0] == IGNORED, "nothing predicts the first token of a row"
        assert {label for label in row.labels if label != IGNORED} <= set(row.input_ids)
    assert tokenizer.decode(whole[0].labels[1:]).endswith("there was no school.")
    answers = [tokenizer.decode([label for label in row.labels if label != IGNORED]) for row in whole[20:]]
    assert all(chats()[n].answer in answer and chats()[n].question not in answer for n, answer in enumerate(answers))
    assert max(len(row.input_ids) for row in general_rows(chat, tokenizer)) == MOST_TOKENS


def test_questions_become_prompts_where_nothing_is_held_out():
    tokenizer = tokenizer_with("chatml")
    prompts = general_prompts(Chat(tokenizer), 3)
    assert [prompt.messages[0].content for prompt in prompts] == [chat.question for chat in chats()[:3]]
    for prompt in prompts:
        assert prompt.messages[0].content in tokenizer.decode(prompt.ids)
        assert prompt.reference not in tokenizer.decode(prompt.ids)
