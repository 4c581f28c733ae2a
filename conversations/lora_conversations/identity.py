"""Decides which examples belong to the same conversation, and which conversations are held out for validation.

The `conversation_id` of a file is not reliable: in the application's own files, many conversations of the same kind
have the same id. So a conversation is identified by its id together with its beginning, called its opening: all
messages before the first answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lora_contract.words import counted
from lora_conversations.examples import ASSISTANT
from lora_conversations.preferences import Sample

_MOST_WITHOUT_BEING_ASKED = 0.25
"""If every conversation is larger than the requested share, the smallest is held out, up to this share of answers."""


def opening_of(example: Sample) -> str:
    """Return the digest of all messages before the first answer, or `example.opening` if that is set."""
    if example.opening is not None:
        return example.opening
    digest = hashlib.sha256()
    for message in example.messages:
        if message.role == ASSISTANT:
            break
        digest.update(f"{message.role}:{len(message.content)}:{message.content}".encode())
    return digest.hexdigest()[:32]


def conversation_key(example: Sample) -> str:
    """Return a key that is equal for all examples of one conversation and for no others: id and opening."""
    opening = opening_of(example)
    return opening if example.conversation_id is None else f"{example.conversation_id}#{opening}"


def continues(example: Sample, last: Sample) -> bool:
    """Tell whether an example continues the conversation of the example before it in the file.

    Its opening may differ, because its history was cut or its system prompt changed. Files write the pairs of a
    conversation one after the other, so its history then contains the question and the answer with which `last` ended.
    """
    if example.conversation_id is None or example.conversation_id != last.conversation_id:
        return False
    ending = last.messages[-2:]
    earlier = example.messages[:-2]
    return any(earlier[index : index + 2] == ending for index in range(len(earlier) - 1))


def conversation_names(examples: Iterable[Sample]) -> dict[str, str]:
    """Name each conversation, by its key: its id if that is unique in the dataset, else the key itself."""
    identities = {conversation_key(example): example.conversation_id for example in examples}
    holders: dict[str | None, int] = {}
    for identity in identities.values():
        holders[identity] = holders.get(identity, 0) + 1
    return {
        key: identity if identity is not None and holders[identity] == 1 else key
        for key, identity in identities.items()
    }


def shared_ids_note(examples: Iterable[Sample]) -> str | None:
    """Write a sentence for the user if several conversations have the same id; else return None."""
    identities = {conversation_key(example): example.conversation_id for example in examples}
    named = [identity for identity in identities.values() if identity is not None]
    distinct = len(set(named))
    if distinct == len(named):
        return None
    ids = "the same conversation_id" if distinct == 1 else f"only {distinct} different values of conversation_id"
    return f"The {len(named)} conversations have {ids} and were told apart by how they begin."


class HeldOut(NamedTuple):
    """The keys of the conversations that are held out, and a sentence if the requested share was not possible."""

    keys: frozenset[str]
    note: str | None = None


def hold_out(answers: Mapping[str, int], share: float, seed: int) -> HeldOut:
    """Choose whole conversations to hold out for validation, with about `share` (0 to 1) of all answers.

    `answers` holds the number of answers of each conversation, by its key. The choice depends only on keys, numbers
    and seed, not on their order. If every conversation is larger than the share, the smallest one is held out, but
    only if it has no more than a quarter of all answers.
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
