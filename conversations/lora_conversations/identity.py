"""Which examples belong to one conversation, and which conversations are held out.

A file's ids can't be trusted to tell conversations apart: in the application's own files the id of a pair
names its kind. So a conversation is known by its id and by how it begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lora_contract.words import counted
from lora_conversations.examples import ASSISTANT, Example

_MOST_WITHOUT_BEING_ASKED = 0.25
"""Where conversations are too large for the share asked for, one is held out up to this share of the answers."""


def opening_of(example: Example) -> str:
    """A digest of all up to the first answer, or the one that the example was given."""
    if example.opening is not None:
        return example.opening
    digest = hashlib.sha256()
    for message in example.messages:
        if message.role == ASSISTANT:
            break
        digest.update(f"{message.role}:{len(message.content)}:{message.content}".encode())
    return digest.hexdigest()[:32]


def conversation_key(example: Example) -> str:
    """What examples of one conversation share, and no others: id and opening."""
    opening = opening_of(example)
    return opening if example.conversation_id is None else f"{example.conversation_id}#{opening}"


def continues(example: Example, last: Example) -> bool:
    """Whether an example goes on with the last one, though its history was cut or its system prompt changed.

    Files write a conversation's pairs one after the other: its history then holds the question and answer
    with which the last one ended.
    """
    if example.conversation_id is None or example.conversation_id != last.conversation_id:
        return False
    ending = last.messages[-2:]
    earlier = example.messages[:-2]
    return any(earlier[index : index + 2] == ending for index in range(len(earlier) - 1))


def conversation_names(examples: Iterable[Example]) -> dict[str, str]:
    """Each conversation's name by its key: its id where no other has the same, else its key."""
    identities = {conversation_key(example): example.conversation_id for example in examples}
    holders: dict[str | None, int] = {}
    for identity in identities.values():
        holders[identity] = holders.get(identity, 0) + 1
    return {
        key: identity if identity is not None and holders[identity] == 1 else key
        for key, identity in identities.items()
    }


def shared_ids_note(examples: Iterable[Example]) -> str | None:
    """A sentence where one id stands for several conversations."""
    identities = {conversation_key(example): example.conversation_id for example in examples}
    named = [identity for identity in identities.values() if identity is not None]
    distinct = len(set(named))
    if distinct == len(named):
        return None
    ids = "the same conversation_id" if distinct == 1 else f"only {distinct} different values of conversation_id"
    return f"The {len(named)} conversations have {ids} and were told apart by how they begin."


class HeldOut(NamedTuple):
    """The keys of the conversations that are held out, and a sentence where that is not what was asked for."""

    keys: frozenset[str]
    note: str | None = None


def hold_out(answers: Mapping[str, int], share: float, seed: int) -> HeldOut:
    """Which conversations to hold out, whole, so that about `share` of all answers is held out.

    `answers` counts each conversation's by its key. The choice depends on keys, counts and seed alone, not on
    the order. Where each conversation holds more than the share, the smallest is held out if that is no more
    than a quarter of all answers.
    """
    if share <= 0 or not answers:
        return HeldOut(frozenset())
    total = sum(answers.values())
    limit = round(share * total)
    ranked = sorted(answers, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    chosen: list[str] = []
    held = 0
    for key in ranked:
        if held + answers[key] <= limit:
            chosen.append(key)
            held += answers[key]
    if not chosen:
        smallest = min(ranked, key=answers.__getitem__)
        if answers[smallest] > _MOST_WITHOUT_BEING_ASKED * total:
            return HeldOut(frozenset(), _nothing_held_out(answers[smallest], total, len(answers), share))
        chosen, held = [smallest], answers[smallest]
    note = None
    if abs(held - share * total) >= 1:
        note = (
            f"Held out for validation: {held} of {counted(total, 'answer')} ({held / total:.0%}), not {share:.0%}, "
            "since conversations are held out whole."
        )
    return HeldOut(frozenset(chosen), note)


def _nothing_held_out(smallest: int, total: int, conversations: int, share: float) -> str:
    why = (
        "all answers belong to one conversation"
        if conversations == 1
        else f"the smallest of {conversations} conversations has {smallest} of {counted(total, 'answer')}"
    )
    return f"Nothing is held out for validation ({share:.0%} was asked for): {why}, and conversations are kept whole."
