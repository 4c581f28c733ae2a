"""Which held-out conversations become prompts that base and tuned model answer."""

import pytest

from lora_conversations.examples import Example, Message
from lora_trainer.data import sample_prompts as module
from lora_trainer.data.chat import Chat
from lora_trainer.data.sample_prompts import sample_prompts
from tests.unit.trainer.tokenizers import tokenizer_with

pytestmark = pytest.mark.gpu_stack


@pytest.fixture
def prompts_of(monkeypatch):
    """Makes samples, of which those with these numbers are too long, and tells which became prompts."""
    tokenizer = tokenizer_with("chatml")
    monkeypatch.setattr(module, "_MOST_TOKENS", 60)

    def numbers(count, *, is_long):
        samples = [
            Example((Message("user", f"{n}" + " no" * 60 * is_long(n)), Message("assistant", "Yes.")), (1,), None, 1)
            for n in range(count)
        ]
        return [int(prompt.messages[0].content) for prompt in sample_prompts(Chat(tokenizer), tokenizer, samples)]

    return numbers


def test_prompts_come_from_all_over_the_samples(prompts_of):
    assert prompts_of(28, is_long=lambda n: False) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]


def test_short_prompts_take_the_place_of_long_ones(prompts_of):
    assert sorted(prompts_of(28, is_long=lambda n: n % 3 == 0)) == [1, 2, 4, 5, 7, 8, 10, 11, 13, 14]
    assert prompts_of(28, is_long=lambda n: n != 13) == [13]


def test_search_for_short_prompts_is_bounded(prompts_of, monkeypatch):
    tried = []
    prompt = module._prompt
    monkeypatch.setattr(module, "_prompt", lambda *given: tried.append(given) or prompt(*given))
    assert prompts_of(300, is_long=lambda n: True) == []
    assert 20 <= len(tried) <= 60
