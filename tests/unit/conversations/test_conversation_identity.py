"""Which examples belong to one conversation, even with useless ids, and which are held out."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conversations.identity import conversation_key, conversation_names, hold_out, shared_ids_note
from lora_conversations.reader import Example, merge_conversations, read_examples
from tests.corpus.builders import chat, conversation, full_file, lines, pair, turn


def read(content: bytes) -> list[Example]:
    examples = list(read_examples([content]))
    assert all(isinstance(example, Example) for example in examples)
    return [example for example in examples if isinstance(example, Example)]


def talk(number: int, turns: int = 3, kind: str | None = None) -> list[dict[str, Any]]:
    """The pairs of a conversation with its own texts; their `conversation_id` names only a kind of conversation."""
    messages: list[dict[str, Any]] = []
    pairs = []
    for index in range(turns):
        messages.append(turn("user", f"Question {number}-{index}?"))
        answer = f"Answer {number}-{index}."
        pairs.append(
            {
                "conversation_id": kind or ("alpha", "beta")[number % 2],
                "conversation_history": list(messages),
                "current_user_input": f"Question {number}-{index}?",
                "target_response": answer,
            }
        )
        messages.append(turn("assistant", answer))
    return pairs


def answers_of(examples: list[Example]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for example in examples:
        counted[conversation_key(example)] += len(example.trained)
    return counted


def test_id_of_the_enclosing_conversation_wins_over_a_pairs_own() -> None:
    file = full_file(*(conversation(f"unique-{number:02}", *talk(number)) for number in range(20)))
    examples = read(file)
    answers = answers_of(examples)
    assert len(answers) == 20
    assert set(answers.values()) == {3}
    assert sorted(conversation_names(examples).values())[:2] == ["unique-00", "unique-01"]
    held_out = hold_out(answers, 0.1, 42)
    assert sum(answers[key] for key in held_out.keys) == 6
    assert (held_out.note, shared_ids_note(examples)) == (None, None)


def test_lines_sharing_an_id_are_separated_by_their_beginning() -> None:
    examples = read(lines(*(row for number in range(20) for row in talk(number))))
    answers = answers_of(examples)
    assert len(answers) == 20
    assert sum(answers[key] for key in hold_out(answers, 0.1, 42).keys) == 6
    assert shared_ids_note(examples) == (
        "The 20 conversations have only 2 different values of conversation_id and were told apart by how they begin."
    )
    assert all(name.startswith(("alpha#", "beta#")) for name in conversation_names(examples).values())


def test_conversations_sharing_an_enclosing_id_are_separated() -> None:
    examples = read(full_file(*(conversation("kind", *talk(number)) for number in range(8))))
    assert sorted(answers_of(examples).values()) == [3] * 8


def test_pairs_without_an_id_join_their_enclosing_conversation() -> None:
    cut = [{**row, "conversation_history": row["conversation_history"][-2:]} for row in talk(1)]
    for row in cut:
        del row["conversation_id"]
    other = [{key: value for key, value in row.items() if key != "conversation_id"} for row in talk(2)]
    examples = read(json.dumps([{"training_pairs": cut}, {"training_pairs": other}]).encode())
    assert sorted(answers_of(examples).values()) == [3, 3]


def test_history_cut_from_the_left_stays_with_its_conversation() -> None:
    rows = [{**row, "conversation_history": row["conversation_history"][-3:]} for row in talk(1, 6)]
    assert len(answers_of(read(lines(*rows, *talk(3, 6))))) == 2


def test_changing_system_prompt_does_not_split_a_conversation() -> None:
    rows = [{**row, "system_prompt": f"It is {index} o'clock."} for index, row in enumerate(talk(1, 4))]
    assert len(answers_of(read(lines(*rows)))) == 1


def test_rows_without_ids_are_identified_by_their_beginning() -> None:
    examples = read(lines(chat("a", "b"), chat("a", "c"), chat("d", "e")))
    assert sorted(answers_of(examples).values()) == [1, 2]


# Holding out


counts = st.dictionaries(st.text(max_size=4), st.integers(1, 50), max_size=30)


@settings(deadline=None, max_examples=300)
@given(counts, st.floats(0, 0.5), st.integers(0, 9), st.randoms(use_true_random=False))
def test_held_out_share_is_met_in_any_order(answers: dict[str, int], share: float, seed: int, random: Any) -> None:
    total = sum(answers.values())
    held_out = hold_out(answers, share, seed)
    held = sum(answers[key] for key in held_out.keys)
    assert held <= max(round(share * total), 0.25 * total)
    assert not answers or len(held_out.keys) < len(answers)
    if share and answers and abs(held - share * total) >= 1:
        assert held_out.note
    if not share:
        assert held_out == (frozenset(), None)
    shuffled = list(answers.items())
    random.shuffle(shuffled)
    assert hold_out(dict(shuffled), share, seed).keys == held_out.keys


def test_two_large_conversations_are_both_trained_on_with_a_note() -> None:
    assert hold_out({"a": 30, "b": 31}, 0.1, 1) == (
        frozenset(),
        "Nothing is held out for validation (10% was asked for): the smallest of 2 conversations has 30 of 61 "
        "answers, and conversations are kept whole.",
    )


def test_single_conversation_is_trained_on_with_a_note() -> None:
    assert hold_out({"a": 9}, 0.2, 1).note == (
        "Nothing is held out for validation (20% was asked for): all answers belong to one conversation, "
        "and conversations are kept whole."
    )


def test_smallest_of_a_few_large_conversations_is_held_out() -> None:
    held_out = hold_out({"a": 6, "b": 5, "c": 4, "d": 5}, 0.1, 7)
    assert held_out.keys == {"c"}
    assert held_out.note == (
        "Held out for validation: 4 of 20 answers (20%), not 10%, since conversations are held out whole."
    )


def test_a_split_is_the_same_in_every_process() -> None:
    examples = read(lines(*(pair(2, f"c{number}", system_prompt=f"{number}") for number in range(20))))
    held_out = hold_out(answers_of(examples), 0.1, 42).keys
    assert {example.conversation_id for example in examples if conversation_key(example) in held_out} == {"c12", "c16"}


def test_another_seed_holds_out_other_conversations() -> None:
    answers = {f"c{number}": 1 for number in range(50)}
    assert hold_out(answers, 0.2, 1).keys != hold_out(answers, 0.2, 2).keys


def test_a_split_before_and_after_merging_holds_out_the_same_conversations() -> None:
    examples = read(lines(*(row for number in range(20) for row in talk(number, kind=f"c{number}"))))
    merged = merge_conversations(examples)
    assert len(merged) == 20
    assert hold_out(answers_of(merged), 0.2, 3) == hold_out(answers_of(examples), 0.2, 3)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_an_empty_dataset_holds_nothing_out(share: float) -> None:
    assert hold_out({}, share, 1) == (frozenset(), None)
