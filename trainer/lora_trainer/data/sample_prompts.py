"""The prompts of held-out conversations that base and tuned model answer side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from lora_contract.bounds import spread
from lora_contract.evaluation import MAX_SAMPLE_MESSAGES, MAX_SAMPLES, SampleMessage
from lora_conversations.examples import Example, Message
from lora_conversations.identity import conversation_key
from lora_conversations.preferences import Preference, Rating, Sample
from lora_trainer.run.held_out import HeldOutPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_trainer.data.chat import Chat

_MOST_TOKENS = 2048
"""A longer prompt is left out: to answer it takes longer, and nobody reads it in a model card."""
_MOST_MORE = 50
"""So many more are rendered, at most, where fewer than ten were short enough."""


def sample_prompts(chat: Chat, tokenizer: PreTrainedTokenizerBase, samples: Iterable[Sample]) -> list[HeldOutPrompt]:
    """Up to ten prompts with the dataset's answers, one of a conversation, from all over the held-out samples.

    Those that have more than 2,048 tokens or 100 messages are left out; up to 50 others are tried in their place.
    """
    first = {conversation_key(sample): sample for sample in reversed(list(samples))}
    candidates = [sample for sample in reversed(first.values()) if _is_short(sample)]
    numbers = list(range(len(candidates)))
    order = dict.fromkeys([*spread(numbers, MAX_SAMPLES), *spread(numbers, _MOST_MORE)])
    prompts = (prompt for number in order for prompt in _prompt(chat, tokenizer, candidates[number]))
    return list(islice(prompts, MAX_SAMPLES))


def _is_short(sample: Sample) -> bool:
    return len(_turn(sample)[0]) <= MAX_SAMPLE_MESSAGES


def _turn(sample: Sample) -> tuple[Sequence[Message], Message]:
    """The prompt and the answer to it: of a conversation the first that is learned, of a pair the better one."""
    if isinstance(sample, Preference):
        return sample.prompt, sample.chosen[0]
    at = sample.trained[0] if isinstance(sample, Example) else len(sample.messages) - 1
    return sample.messages[:at], sample.messages[at]


def _prompt(chat: Chat, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> Iterator[HeldOutPrompt]:
    messages, answer = _turn(sample)
    ids, answer_ids = chat.continuation(messages, [answer], tools=sample.tools)
    if len(ids) > _MOST_TOKENS:
        return
    shown = [SampleMessage(role=message.role, content=_text(message)) for message in messages]
    is_good = not isinstance(sample, Rating) or sample.good
    reference = str(tokenizer.decode(answer_ids, skip_special_tokens=True)).strip() if is_good else None
    yield HeldOutPrompt(messages=shown, ids=ids, reference=reference)


def _text(message: Message) -> str:
    calls = [f"{call.name}({call.arguments})" for call in message.calls]
    return "\n".join(filter(None, [message.content, *calls]))
