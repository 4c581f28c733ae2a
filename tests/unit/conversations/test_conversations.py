"""Properties of the dataset reader: only documented errors, every answer once, reproducible splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_contract.hyperparameters import Method
from lora_conversations.errors import DatasetUnusableError, LineError
from lora_conversations.examples import TOOL
from lora_conversations.preferences import Preference, Rating, Sample
from lora_conversations.reader import (
    ASSISTANT,
    SYSTEM,
    USER,
    Example,
    ExampleParser,
    Message,
    fold_system,
    merge_conversations,
    read_examples,
)
from lora_conversations.survey import Survey, Surveyor, estimate_tokens
from tests.corpus import CASES
from tests.corpus.builders import GOOD, META, chat, conversation, full_file, lines, pair, sharegpt, turn, v3_pair
from tests.corpus.readings import READINGS

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "eq-alignment-12.jsonl"
SMALL_CASES = [case.content for case in (*CASES, *READINGS) if len(case.content) < 100_000]
METHODS = st.sampled_from(["sft", "dpo", "kto", None])

Outcome = tuple[list[Sample | LineError], tuple[str, str | None] | None]


def read(content: bytes) -> list[Example]:
    examples = list(read_examples([content]))
    assert all(isinstance(example, Example) for example in examples)
    return [example for example in examples if isinstance(example, Example)]


def read_all(content: bytes, cuts: Sequence[int] = (), method: Method | None = "sft") -> Outcome:
    """Everything that the reader yields for a file that arrives in pieces, cut at `cuts`."""
    parser = ExampleParser(method)
    found: list[Sample | LineError] = []
    edges = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    try:
        for start, end in pairwise(edges):
            found += parser.feed(content[start:end])
        found += parser.close()
    except DatasetUnusableError as error:
        return found, (error.message, error.hint)
    return found, None


def contents(example: Example) -> list[str]:
    return [message.content for message in example.messages]


def survey(content: bytes) -> Survey:
    surveyor = Surveyor()
    surveyor.feed(content)
    surveyor.close()
    return surveyor.result()


def taught(examples: Sequence[Example]) -> Counter[tuple[Message, ...]]:
    """Each learned answer with its whole context, and how often it is learned."""
    return Counter(example.messages[: index + 1] for example in examples for index in example.trained)


# Formats


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("openai_messages", lines(chat("a", "b")), [["a", "b"]]),
        ("brightrun", lines(META, pair(4)), [["Be kind.", "turn 1", "turn 2", "turn 3", "turn 4"]]),
        ("brightrun", full_file(conversation("a", pair(2))), [["Be kind.", "turn 1", "turn 2"]]),
        ("turns", lines({"turns": [turn("user", "a"), turn("assistant", "b")]}), [["a", "b"]]),
        (
            "brightrun_v3",
            json.dumps({"training_pairs": [v3_pair(1, "x"), v3_pair(2, "y")]}).encode(),
            [["Question 1?", "x", "Question 2?", "y"]],
        ),
        ("sharegpt", lines(sharegpt("a", "b", system="s")), [["s", "a", "b"]]),
        ("alpaca", lines({"instruction": "a", "input": "i", "output": "b"}), [["a\n\ni", "b"]]),
        ("alpaca", lines({"instruction": "c", "output": "d", "history": [["a", "b"]]}), [["a", "b", "c", "d"]]),
        ("prompt_completion", lines({"prompt": "a", "completion": "b"}), [["a", "b"]]),
        (
            "prompt_completion",
            lines({"prompt": [turn("system", "s"), turn("user", "a")], "completion": [turn("assistant", "b")]}),
            [["s", "a", "b"]],
        ),
    ],
)
@pytest.mark.fault(49)
def test_each_format_is_recognised_by_its_content(name: str, content: bytes, expected: list[list[str]]) -> None:
    assert [contents(example) for example in read(content)] == expected
    assert survey(content).format == name


def test_formats_may_be_mixed_in_one_file() -> None:
    assert survey(lines(chat(), sharegpt("a", "b"), pair(2))).examples == 3


def test_pairs_learn_their_target_and_conversations_every_answer() -> None:
    assert read(lines(pair(6)))[0].trained == (6,)
    assert read(lines(sharegpt("a", "b", "c", "d")))[0].trained == (1, 3)


def test_an_answer_with_weight_zero_is_context() -> None:
    messages = [turn("user", "a"), {**turn("assistant", "b"), "weight": 0}, turn("user", "c"), turn("assistant", "d")]
    assert read(lines({"messages": messages}))[0].trained == (3,)


@pytest.mark.fault(50)
def test_repeated_user_turn_is_dropped_and_a_different_one_kept() -> None:
    doubled = pair(4)
    other = pair(4, current_user_input="something else")
    assert contents(read(lines(doubled))[0])[-2:] == ["turn 3", "turn 4"]
    assert contents(read(lines(other))[0])[-2:] == ["turn 3\n\nsomething else", "turn 4"]


def test_an_unanswered_v3_turn_stays_as_context_of_the_next_answer() -> None:
    example = read(json.dumps({"training_pairs": [v3_pair(1, None), v3_pair(2, "y")]}).encode())[0]
    assert contents(example) == ["Question 1?\n\nQuestion 2?", "y"]


def test_examples_carry_their_line_numbers() -> None:
    assert [example.line for example in read(lines(META, "", pair(2), chat()))] == [3, 4]
    assert [example.line for example in read(json.dumps([chat(), chat()], indent=0).encode())] == [2, 14]


def test_only_the_first_ten_bad_lines_are_kept_but_all_are_counted() -> None:
    result = survey(lines(*GOOD, *(["{]"] * 15)))
    assert (result.bad, len(result.errors), result.errors[-1].line) == (15, 10, 30)


# Arbitrary bytes


def is_ordered(item: Sample) -> bool:
    """Whether the messages alternate as chat templates want it, and end with what is learned."""
    if isinstance(item, Preference):
        both = (*item.chosen, *item.rejected)
        ends = item.prompt[-1].role in (USER, TOOL) and [message.role for message in both] == [ASSISTANT] * 2
        return ends and alternate(item.messages) and item.chosen != item.rejected and item.line >= 1
    roles = [message.role for message in item.messages]
    if isinstance(item, Rating):
        return alternate(item.messages) and roles[-1] == ASSISTANT and item.line >= 1
    learned = all(roles[index] == ASSISTANT for index in item.trained)
    weighted = not item.weights or (len(item.weights) == len(item.trained) and all(0 < w <= 1 for w in item.weights))
    return alternate(item.messages) and learned and weighted and item.trained[-1] == len(roles) - 1 and item.line >= 1


def alternate(messages: Sequence[Message]) -> bool:
    """Whether each turn follows one that it may follow; a result needs an open call, and a call its results."""
    calls = 0
    last = SYSTEM
    for index, message in enumerate(messages):
        follows = {SYSTEM: (SYSTEM,), USER: (SYSTEM, ASSISTANT, TOOL), ASSISTANT: (USER, TOOL), TOOL: (ASSISTANT, TOOL)}
        if last not in follows[message.role] or (message.role == SYSTEM and index):
            return False
        calls -= message.role == TOOL
        if calls < 0 or (calls and message.role != TOOL):
            return False
        calls += len(message.calls)
        last = message.role
    return last == ASSISTANT


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Files of the corpus with a few bytes removed, repeated or put in."""
    content = draw(st.sampled_from(SMALL_CASES))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(start + 40, len(content))))
        middle = draw(st.sampled_from([b"", b"{", b"}", b"]", b",", b'"', b"\\", b"\n", b"\x00", b"\xff", b"null"]))
        content = content[:start] + middle * draw(st.integers(1, 2)) + content[end:]
    return content


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300) | damaged_files(), st.lists(st.integers(0, 3000), max_size=5), METHODS)
def test_any_bytes_give_samples_or_documented_errors(content: bytes, cuts: list[int], method: Method | None) -> None:
    whole = read_all(content, method=method)
    assert read_all(content, cuts, method) == whole
    assert all(is_ordered(item) for item in whole[0] if not isinstance(item, LineError))


# fmt: off
KEYS = [
    "messages", "role", "content", "conversations", "from", "value", "turns", "training_pairs", "user_input",
    "synthesized_output", "response_to_user", "current_user_input", "target_response", "conversation_history",
    "system_prompt", "prompt", "completion", "instruction", "input", "output", "history", "metadata",
    "conversation_metadata", "conversation_id", "data", "rows", "contents", "parts", "question", "answer", "context",
    "weight", "train", "loss", "tools", "tool_calls", "thinking", "refusal", "audio", "chosen", "rejected", "label",
    "_meta", "type", "text", "name", "function", "arguments", "function_call", "tool_call_id", "id", "preferred_output",
    "reasoning_content", "non_preferred_output", "rating", "original_answer", "edited_answer",
]
# fmt: on
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
WORDS = st.sampled_from(["user", "assistant", "system", "tool", "function_call", "hello", "up", '[{"name": "f"}]'])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner | WORDS, max_size=5),
    max_leaves=25,
)


@settings(deadline=None, max_examples=300)
@given(JSON, st.sampled_from([None, 1]), METHODS)
def test_any_json_value_gives_samples_or_errors(value: object, indent: int | None, method: Method | None) -> None:
    found, _ = read_all(json.dumps(value, indent=indent).encode(), method=method)
    assert all(isinstance(item, LineError) or is_ordered(item) for item in found)


EXTRA_KEYS = st.sampled_from(
    ["name", "tags", "weight", "train", "loss", "tools", "functions", "tool_calls", "reasoning", "thinking", "audio",
     "refusal", "_meta", "data", "label", "chosen", "rejected", "answer", "context", "history", "conversations"]
)  # fmt: skip
EXTRA_VALUES = st.sampled_from([True, False, 0, 1, 0.5, "x", "0", [1], [{"a": 1}], {"a": 1}])


@settings(deadline=None, max_examples=300)
@given(EXTRA_KEYS, EXTRA_VALUES, st.sampled_from(["row", "question", "answer"]))
def test_no_key_with_a_value_is_ignored_silently(key: str, value: object, place: str) -> None:
    row = chat("a", "b")
    target = {"row": row, "question": row["messages"][0], "answer": row["messages"][1]}[place]
    target[key] = value
    result = survey(lines(row))
    is_named = any(unused.name.removeprefix("messages[].").startswith(key) for unused in result.unused_keys)
    says_learn = (key in {"weight", "train", "loss"} and value in (True, 1)) or (key, value) == ("weight", 0.5)
    is_not_learned_anyway = place == "question" and key in {"weight", "train", "loss"}
    is_used = result.with_thoughts or result.with_tools
    assert result.bad or result.unwanted or is_named or is_used or says_learn or is_not_learned_anyway


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(["a", 'b"', "c:"]), st.sampled_from(["1", '"\\":"', '{"a" : 1}'])), max_size=4),
    st.sampled_from([":", " :", "\t:", " \t : "]),
    st.sampled_from([":", " : "]),
)
def test_repeated_key_is_detected_however_it_is_spaced(
    members: list[tuple[str, str]], first_colon: str, other_colon: str
) -> None:
    colons = [first_colon, *[other_colon] * 3]
    texts = [f"{json.dumps(key)}{colon}{value}" for (key, value), colon in zip(members, colons, strict=False)]
    content = lines(json.dumps(chat())[:-1] + ', "extra": {' + ", ".join(texts) + "}}")
    found, _ = read_all(content + lines(chat()))
    is_doubled = len({key for key, _ in members}) < len(members)
    errors = [item for item in found if isinstance(item, LineError)]
    assert bool(errors) == is_doubled
    assert all(error.error.endswith("twice") for error in errors)


def test_v3_answer_excluded_from_training_is_context() -> None:
    pairs = [{**v3_pair(1), "train": False}, v3_pair(2)]
    assert read(lines({"training_pairs": pairs}))[0].trained == (3,)


@pytest.mark.parametrize(
    "flag", [{"train": False}, {"loss": False}, {"weight": "0"}, {"weight": 0.0}, {"train": "False"}]
)
def test_answer_excluded_from_training_is_context(flag: dict[str, object]) -> None:
    bad, good = {**turn("assistant", "bad"), **flag}, {**turn("assistant", "good"), "weight": 1, "train": True}
    messages = [turn("user", "a"), bad, turn("user", "b"), good]
    assert read(lines({"messages": messages}))[0].trained == (3,)
    spelt = [{"from": item.pop("role"), "value": item.pop("content"), **item} for item in messages]
    assert read(
        lines(
            {"conversations": [{**item, "from": {"user": "human", "assistant": "gpt"}[item["from"]]} for item in spelt]}
        )
    )[0].trained == (3,)


def test_system_prompts_are_joined_in_their_order() -> None:
    row = {"system": "s", "system_prompt": "p", "messages": [turn("system", "t"), *chat("a", "b")["messages"]]}
    assert contents(read(lines(row))[0]) == ["p\n\ns\n\nt", "a", "b"]


# Merging


def test_the_pairs_of_a_conversation_become_one_example_with_every_answer() -> None:
    examples = read(lines(pair(6), pair(2), pair(4), pair(2, "other")))
    merged = merge_conversations(examples)
    assert [(example.conversation_id, example.trained) for example in merged] == [("c1", (2, 4, 6)), ("other", (2,))]
    assert merged[0].line == 1


def test_pairs_with_another_history_are_not_merged() -> None:
    changed = pair(4, conversation_history=[turn("user", "turn 1"), turn("assistant", "edited"), turn("user", "x")])
    assert len(merge_conversations(read(lines(pair(2), changed)))) == 2
    assert len(merge_conversations(read(lines(pair(2), pair(4, system_prompt="Be brief."))))) == 2


examples_of_conversations = st.lists(
    st.builds(
        lambda identity, texts, first, line: Example(
            tuple(Message(ASSISTANT if index % 2 else USER, text) for index, text in enumerate(texts)),
            tuple(index for index in range(1, len(texts), 2) if index >= min(first, len(texts) - 1)),
            identity,
            line,
        ),
        st.sampled_from([None, "a", "b"]),
        st.integers(1, 4).flatmap(lambda n: st.lists(st.sampled_from("xy"), min_size=2 * n, max_size=2 * n)),
        st.integers(1, 7),
        st.integers(1, 9),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(examples_of_conversations)
def test_merging_keeps_each_answer_its_context_and_its_weight(examples: list[Example]) -> None:
    merged = merge_conversations(examples)
    assert taught(merged) == taught(examples)
    assert all(is_ordered(example) for example in merged)
    assert len(merge_conversations(merged)) <= len(merged) <= len(examples)


def test_a_long_conversation_merges_without_a_quadratic_search() -> None:
    turns = tuple(Message(ASSISTANT if index % 2 else USER, str(index)) for index in range(4000))
    examples = [Example(turns[:end], (end - 1,), "a", end) for end in range(3600, 4001, 2)]
    assert len(merge_conversations(examples)) == 1


# Folding


def test_system_prompt_can_be_moved_into_the_first_question() -> None:
    example = read(lines({"system": "s", "messages": chat("a", "b")["messages"] + chat("c", "d")["messages"]}))[0]
    folded = fold_system(example.messages)
    assert [message.content for message in folded] == ["s\n\na", "b", "c", "d"]
    assert fold_system(folded) == folded


# The survey


def test_survey_counts_examples_answers_and_tokens() -> None:
    content = lines(META, pair(2), pair(4), pair(5, target_response=None), pair(2, "c2"), "{]")
    result = survey(content)
    assert (result.examples, result.answers, result.conversations, result.skipped, result.bad) == (3, 3, 2, 1, 1)
    assert result.bytes == len(content)
    assert result.turns_per_conversation == 3.0
    assert [len(entry["messages"]) for entry in result.sample] == [5, 3]


def test_tokens_are_a_quarter_of_the_bytes() -> None:
    assert estimate_tokens("four") == 1
    assert estimate_tokens("金融顧問") == 3
    result = survey(lines(chat("a" * 400, "b" * 40)))
    assert result.tokens == 100 + 10 + 8


def test_the_sample_is_short_and_fits_a_jsonb_column() -> None:
    result = survey(lines(*(sharegpt(*["x\x00" * 3000] * 100, id=f"{number}\x00") for number in range(9))))
    assert len(result.sample) == 3
    assert "\\u0000" not in json.dumps(result.sample)
    assert len(json.dumps(result.sample)) < 100_000


def test_share_of_bad_lines_is_accepted_up_to_its_limit() -> None:
    survey(lines(*GOOD[:19], "{]")).check(max_bad_line_share=0.05)
    with pytest.raises(DatasetUnusableError) as refused:
        survey(lines(*GOOD[:18], "{]")).check(max_bad_line_share=0.05)
    assert refused.value.message.startswith("Line 19 of the dataset is not valid JSON (Expecting property name")
    assert refused.value.hint == "Fix the line or remove it."


def test_refusal_for_many_bad_lines_fits_a_notification() -> None:
    with pytest.raises(DatasetUnusableError) as refused:
        survey(lines(*GOOD, *([{"messages": [turn("narrator", "x")]}] * 15))).check(max_bad_line_share=0.05)
    assert refused.value.message == (
        "15 of 35 examples of the dataset can't be used (5% may be bad). Line 21 of the dataset: messages[0].role "
        "is a text of 8 characters that names no role. Look also at lines 22, 23, 24, 25."
    )
    assert [error.line for error in refused.value.errors] == list(range(21, 31))


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample is not beside this project")
def test_sample_file_has_44_pairs_of_12_conversations() -> None:
    content = SAMPLE.read_bytes()
    result = survey(content)
    assert (result.examples, result.conversations, result.bad, result.skipped) == (44, 12, 0, 0)
    assert result.repairs == {"doubled user turns dropped": 44}
    merged = merge_conversations(read(content))
    assert (len(merged), sum(len(example.trained) for example in merged)) == (12, 44)
