"""Pairs, thumbs, weights and tools in what follows the reading: survey, merging, conversations, and the hold-out."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conversations.errors import DatasetUnusableError, LineError
from lora_conversations.examples import Example
from lora_conversations.identity import conversation_key, conversation_names, hold_out
from lora_conversations.preferences import Sample
from lora_conversations.reader import merge_conversations, read_examples, read_samples
from lora_conversations.survey import Survey, Surveyor
from tests.corpus.builders import chat, conversation, full_file, lines, pair, turn
from tests.corpus.reading import say
from tests.corpus.tools import TOOL, call, calling, result

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

PAIRS = [{"prompt": f"Question {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(20)]
THUMBS = [{"question": f"Question {n}?", "answer": "Yes.", "rating": ("up", "down")[n % 2]} for n in range(20)]
ANSWERS = [chat(f"Question {n}?", "Yes.") for n in range(20)]


def survey(rows: list[Any], method: Method | None) -> Survey:
    surveyor = Surveyor(method=method)
    surveyor.feed(lines(*rows))
    surveyor.close()
    return surveyor.result()


def refusal(rows: list[Any], method: Method) -> str:
    with pytest.raises(DatasetUnusableError) as refused:
        survey(rows, method).check(max_bad_line_share=0.05)
    return refused.value.sentence()


def read(content: bytes, method: Method | None) -> list[Sample]:
    samples = list(read_samples([content], method))
    assert not [item.sentence() for item in samples if isinstance(item, LineError)]
    return [item for item in samples if not isinstance(item, LineError)]


# The method that fits


@pytest.mark.parametrize(
    ("rows", "method", "fitting"),
    [
        (ANSWERS, "dpo", "sft"),
        (ANSWERS, "kto", "sft"),
        (PAIRS, "kto", "dpo"),
        (THUMBS, "dpo", "kto"),
        (THUMBS, "sft", "kto"),
    ],
)
def test_a_file_for_another_method_is_refused_with_its_name(rows: list[Any], method: Method, fitting: str) -> None:
    sentence = refusal(rows, method)
    assert sentence.startswith("20 of 20 examples of the dataset can't be used (5% may be bad). Line 1 of the dataset")
    assert f"method {fitting}" in sentence


@pytest.mark.parametrize(("rows", "method"), [(ANSWERS, "sft"), (PAIRS, "sft"), (PAIRS, "dpo"), (THUMBS, "kto")])
def test_a_file_is_accepted_by_the_methods_that_can_learn_from_it(rows: list[Any], method: Method) -> None:
    survey(rows, method).check(max_bad_line_share=0)


def test_a_validated_dataset_may_hold_whatever_some_method_learns() -> None:
    result = survey([*ANSWERS, *PAIRS, *THUMBS], None)
    result.check(max_bad_line_share=0)
    assert (result.examples, result.pairs, result.thumbs_up, result.thumbs_down) == (60, 20, 10, 10)


@pytest.mark.parametrize(("keep", "kind"), [(0, "up"), (1, "down")])
def test_thumbs_that_are_all_the_same_are_refused(keep: int, kind: str) -> None:
    assert refusal(THUMBS[keep::2], "kto") == (
        f"All thumbs of the dataset are {kind} (10), and method kto learns from the difference. "
        "Add answers with the other thumb, or train the good ones with method sft."
    )


def test_a_dataset_of_equal_answers_alone_is_refused() -> None:
    rows = [{"prompt": "x", "chosen": "y", "rejected": "y"}, {"question": "x", "answer": "y", "original_answer": None}]
    assert refusal(rows, "dpo") == (
        "Nothing of the dataset can be learned with method dpo. Rows left out: both answers are the same, or nobody "
        "changed the answer (2 ×). Add at least one example that can."
    )


# Spellings


ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=200)
@given(ARGUMENTS, st.sampled_from([None, 1]), st.booleans())
def test_arguments_and_tools_are_the_same_as_object_and_as_text(
    arguments: dict[str, Any], indent: int | None, ensure_ascii: bool
) -> None:
    def spelt(value: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)

    tools = [{"name": "get", "parameters": arguments}]
    as_objects = {"messages": [turn("user", "x"), calling(call(arguments))], "tools": tools}
    as_texts = {"messages": [turn("user", "x"), calling(call(spelt(arguments)))], "tools": spelt(tools)}
    one, other = read(lines(as_objects), "sft")[0], read(lines(as_texts), "sft")[0]
    assert one == other
    assert json.loads(one.messages[1].calls[0].arguments) == arguments


# What is counted


def test_both_answers_of_a_pair_count_as_tokens_and_as_one_answer() -> None:
    result = survey([{"prompt": "x" * 40, "chosen": "y" * 80, "rejected": "z" * 400}], "dpo")
    assert (result.examples, result.answers, result.pairs) == (1, 1, 1)
    assert result.tokens == (10 + 4) * 2 + 20 + 4 + 100 + 4
    assert survey([{"prompt": "x" * 40, "chosen": "y" * 80, "rejected": "z" * 400}], "sft").tokens == 10 + 20 + 8


def test_tools_calls_and_thoughts_count_as_tokens() -> None:
    row = {"messages": [turn("user", "x"), calling(call(), content="<think>tttt</think>")], "tools": [TOOL]}
    result = survey([row], "sft")
    (example,) = read(lines(row), "sft")
    assert (result.with_tools, result.with_thoughts) == (1, 1)
    texts = ["x", "tttt", "get", '{"a": "b"}', example.tools or ""]
    assert result.tokens == round(sum(map(len, texts)) / 4 + 8)


def test_the_sample_shows_calls_thoughts_and_the_other_answer() -> None:
    row = {"messages": [turn("user", "x"), calling(call(), content="<think>t</think>")]}
    assert survey([row], "sft").sample[0]["messages"][1] == {
        "role": "assistant",
        "content": "",
        "thought": "t",
        "calls": [{"name": "get", "arguments": '{"a": "b"}'}],
    }
    assert survey(PAIRS, "dpo").sample[0]["rejected"] == [turn("assistant", "No.")]
    assert survey(THUMBS, "kto").sample[1]["good"] is False


def test_a_list_of_tools_that_all_rows_repeat_is_kept_once() -> None:
    rows = [{**chat(str(n)), "tools": tools} for n in range(3) for tools in ([TOOL], json.dumps([TOOL]))]
    samples = read(lines(*rows), "sft")
    assert len({sample.tools for sample in samples}) == 1
    assert len({id(sample.tools) for sample in samples}) <= 2


# Merging


def test_merged_answers_keep_their_weights() -> None:
    rows = [pair(2), pair(4, weight=0.5), pair(6)]
    (merged,) = merge_conversations([item for item in read_examples([lines(*rows)]) if isinstance(item, Example)])
    assert (merged.trained, merged.weights) == ((2, 4, 6), (1.0, 0.5, 1.0))
    plain = merge_conversations(
        [item for item in read_examples([lines(pair(2), pair(4))]) if isinstance(item, Example)]
    )
    assert plain[0].weights == ()


def test_pairs_with_other_tools_are_not_merged() -> None:
    rows = [pair(2), pair(4, tools=[TOOL])]
    assert len(merge_conversations([item for item in read_examples([lines(*rows)]) if isinstance(item, Example)])) == 2


def test_a_call_and_what_follows_it_are_merged() -> None:
    begun = [turn("user", "x"), calling(call())]
    rows = [{"messages": begun, "tools": [TOOL]}, {"messages": [{**begun[1], "weight": 0} if n == 1 else item
            for n, item in enumerate([*begun, result(), turn("assistant", "y")])], "tools": [TOOL]}]  # fmt: skip
    (merged,) = merge_conversations([item for item in read_examples([lines(*rows)]) if isinstance(item, Example)])
    assert merged.trained == (1, 3)


# Conversations and the hold-out


def rated_talk(number: int) -> list[dict[str, Any]]:
    """The rated pairs of one conversation, whose history was cut from the left."""
    said = [turn("user" if n % 2 == 0 else "assistant", f"Turn {number}-{n}.") for n in range(8)]
    return [
        {
            "conversation_id": "kind",
            "conversation_history": said[max(end - 3, 0) : end],
            "current_user_input": said[end - 1]["content"],
            "target_response": said[end]["content"],
            "original_response": "Otherwise.",
            "rating": ("up", "down")[end % 4 == 1],
        }
        for end in (1, 3, 5, 7)
    ]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_pairs_and_thumbs_of_a_conversation_stay_on_one_side(method: Method) -> None:
    if method == "kto":
        talks = [[{**row, "original_response": None} for row in rated_talk(number)] for number in range(10)]
    else:
        talks = [rated_talk(number) for number in range(10)]
    samples = read(lines(*(row for talk in talks for row in talk)), method)
    answers = Counter(conversation_key(sample) for sample in samples)
    assert sorted(answers.values()) == [4] * 10
    held_out = hold_out(answers, 0.2, 42).keys
    assert len(held_out) == 2
    assert sum(conversation_key(sample) in held_out for sample in samples) == 8


def test_answers_to_one_prompt_are_one_conversation() -> None:
    rows = [{"prompt": "x", "completion": text, "label": text == "y"} for text in ("y", "z")]
    assert len({conversation_key(sample) for sample in read(lines(*rows), "kto")}) == 1
    twice = [{"prompt": "x", "chosen": "y", "rejected": text} for text in ("z", "w")]
    assert len({conversation_key(sample) for sample in read(lines(*twice), "dpo")}) == 1


def test_pairs_of_a_full_file_belong_to_the_conversation_around_them() -> None:
    edited = [[pair(end, "kind", original_response="Otherwise.") for end in (2, 4)] for _ in range(2)]
    samples = read(full_file(*(conversation(f"c{number}", *pairs) for number, pairs in enumerate(edited))), "dpo")
    assert sorted(conversation_names(samples).values()) == ["c0", "c1"]
    assert say(samples[1]).endswith("user: turn 3 + answer: turn 4 - answer: Otherwise.")
