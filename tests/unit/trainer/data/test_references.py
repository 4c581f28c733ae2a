"""For each family of chat templates: what is learned, written out by hand, and prompts as a server renders them."""

import json

import pytest

from lora_contract.hyperparameters import Hyperparameters
from lora_conversations.examples import Example, Message, ToolCall
from lora_conversations.reader import read_examples
from lora_trainer.data.chat import IGNORED, Chat
from lora_trainer.data.rows import TruncationCounts, fit_examples, prepare_data
from tests.unit.trainer.data.chats import chat_for, learned_spans
from tests.unit.trainer.tokenizers import OTHERS

pytestmark = pytest.mark.gpu_stack

TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather of a city: naïve, 漢字.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
    ],
    ensure_ascii=False,
)


def calling(city, call_id):
    return (ToolCall("get_weather", json.dumps({"city": city}), call_id),)


def result(text, call_id):
    return Message("tool", text, name="get_weather", call_id=call_id)


CHAT = [
    Message("system", "Be brief."),
    Message("user", "Why?"),
    Message("assistant", "So."),
    Message("user", "And?"),
    Message("assistant", "Thus."),
]
CALLS = [
    Message("system", "Be brief."),
    Message("user", "Weather in Rome?"),
    Message("assistant", "", calls=calling("Rome", "a1b2c3d4e")),
    result('{"degrees": 21}', "a1b2c3d4e"),
    Message("assistant", "21 degrees."),
    Message("user", "And Oslo?"),
    Message("assistant", "", calls=calling("Oslo", "f6g7h8i9j")),
    result('{"degrees": 3}', "f6g7h8i9j"),
    Message("assistant", "3 degrees."),
]
THOUGHTS = [
    Message("user", "2+2?"),
    Message("assistant", "4.", thought="Two and two."),
    Message("user", "3+3?"),
    Message("assistant", "6.", thought="Three and three."),
]
CHAIN = [
    Message("user", "Weather in Rome?"),
    Message("assistant", "", thought="Look it up.", calls=calling("Rome", "a1b2c3d4e")),
    result('{"degrees": 21}', "a1b2c3d4e"),
    Message("assistant", "21 degrees.", thought="Now say it."),
]
_STOP = {
    **dict.fromkeys(("chatml", "smollm2", "qwen2_5", "qwen3", "qwen3_instruct_2507", "empty_thought"), "<|im_end|>"),
    **dict.fromkeys(("mistral_v0_1", "mistral_v0_2", "mistral_v0_3", "strict", "none"), "</s>"),
    **dict.fromkeys(("llama3", "llama3_1"), "<|eot_id|>"),
    **dict.fromkeys(("gemma", "gemma3"), "<end_of_turn>"),
    **dict.fromkeys(("phi3", "phi3_5"), "<|end|>"),
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
}
_BEFORE = {
    **dict.fromkeys(("mistral_v0_2", "mistral_v0_3", "strict"), " "),
    "qwen3": "<think>\n\n</think>\n\n",
    **dict.fromkeys(("deepseek_r1_distill", "empty_thought"), "\n</think>\n\n"),
}
_HERMES = '<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{}"}}}}\n</tool_call>'
CALL = {
    "llama3_1": '{{"name": "get_weather", "parameters": {{"city": "{}"}}}}',
    "mistral_v0_3": '[TOOL_CALLS] [{{"name": "get_weather", "arguments": {{"city": "{}"}}, "id": "a1b2c3d4e"}}]',
    "qwen2_5": _HERMES,
    "qwen3": _HERMES,
    "qwen3_instruct_2507": _HERMES,
    "none": _HERMES,
}
_NO_TEMPLATE_ROW = {"qwen3", "deepseek_r1_distill", "empty_thought"}


def rows_of(name, messages, tools=None):
    chat, tokenizer = chat_for(name)
    trained = tuple(index for index, message in enumerate(messages) if message.role == "assistant")
    example = Example(tuple(messages), trained, "c", 1, tools=tools)
    assert chat.refuse(example) is None
    return list(fit_examples(chat, [example], 4096, TruncationCounts())), tokenizer


def learned(rows, tokenizer):
    return [piece for row in rows for piece in learned_spans(tokenizer, row)]


def openai(message):
    """The message as a client sends it to a server that speaks OpenAI's API, with arguments as an object."""
    spelt = {"role": message.role, "content": message.content}
    if message.thought:
        spelt["reasoning_content"] = message.thought
    if message.calls:
        spelt["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.calls
        ]
    if message.role == "tool":
        spelt |= {"name": message.name, "tool_call_id": message.call_id}
    return spelt


def served_prompts(chat, tokenizer, messages, tools=None, **more):
    """The token ids of the prompt before each answer, as a server makes them."""
    if not chat.takes_system and messages[0].role == "system":
        messages = [Message("user", f"{messages[0].content}\n\n{messages[1].content}"), *messages[2:]]
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    return [
        tokenizer.apply_chat_template(
            [openai(message) for message in messages[:index]],
            tools=tools and json.loads(tools),
            add_generation_prompt=True,
            return_dict=False,
            **more,
        )
        for index in answers
    ]


def trained_prompts(rows):
    """The token ids before each uninterrupted span of learned tokens."""
    return [
        row.input_ids[:at]
        for row in rows
        for at, label in enumerate(row.labels)
        if label != IGNORED and row.labels[at - 1] == IGNORED
    ]


@pytest.mark.parametrize("name", _STOP)
def test_answers_are_learned_with_their_stop_token_alone(name):
    rows, tokenizer = rows_of(name, CHAT)
    before, stop = _BEFORE.get(name, ""), _STOP[name]
    assert learned(rows, tokenizer) == [f"{before}So.{stop}", f"{before}Thus.{stop}"]
    assert len(rows) == (2 if name in _NO_TEMPLATE_ROW else 1)


@pytest.mark.parametrize("name", CALL)
def test_calls_and_answers_are_learned_and_results_are_not(name):
    rows, tokenizer = rows_of(name, CALLS, TOOLS)
    rome, oslo = (CALL[name].format(city) for city in ("Rome", "Oslo"))
    oslo = oslo.replace("a1b2c3d4e", "f6g7h8i9j")
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    space = " " if name == "mistral_v0_3" else ""
    texts = (rome, f"{space}21 degrees.", oslo, f"{space}3 degrees.")
    assert learned(rows, tokenizer) == [f"{thought}{text}{_STOP[name]}" for text in texts]


@pytest.mark.parametrize("name", _STOP)
def test_each_thought_is_learned_once_inside_its_marks(name):
    rows, tokenizer = rows_of(name, THOUGHTS)
    begin = (
        "" if name in {"deepseek_r1_distill", "empty_thought"} else _BEFORE.get(name, "").split("<")[0] + "<think>\n"
    )
    assert learned(rows, tokenizer) == [
        f"{begin}{thought}\n</think>\n\n{answer}{_STOP[name]}"
        for thought, answer in (("Two and two.", "4."), ("Three and three.", "6."))
    ]
    texts = [tokenizer.decode(row.input_ids) for row in rows]
    assert [text.count("Two and two.") for text in texts] == [1, 0], "servers drop thoughts of earlier turns"


@pytest.mark.parametrize("name", CALL)
def test_thoughts_before_a_call_and_after_its_result_are_learned(name):
    rows, tokenizer = rows_of(name, CHAIN, TOOLS)
    space = " " if name == "mistral_v0_3" else ""
    texts = (
        f"<think>\nLook it up.\n</think>\n\n{CALL[name].format('Rome')}",
        f"{space}<think>\nNow say it.\n</think>\n\n21 degrees.",
    )
    assert learned(rows, tokenizer) == [f"{text}{_STOP[name]}" for text in texts]
    kept = tokenizer.decode(rows[-1].input_ids).count("Look it up.")
    assert kept == (name == "qwen3"), "Qwen3 shows its thoughts since the last question"
    assert len(rows) == (1 if name == "qwen3" else 2)


@pytest.mark.parametrize(("kind", "messages", "tools"), [
    ("chat", CHAT, None), ("calls", CALLS, TOOLS), ("thoughts", THOUGHTS, None), ("chain", CHAIN, TOOLS),
])  # fmt: skip
@pytest.mark.parametrize("name", _STOP)
def test_prompts_have_the_token_ids_that_a_server_gives(name, kind, messages, tools):
    chat, _ = chat_for(name)
    if tools and not chat.takes_tools:
        assert "takes tools" in str(chat.refuse(Example(tuple(messages), (1,), None, 1, tools=tools)))
        return
    rows, tokenizer = rows_of(name, messages, tools)
    assert trained_prompts(rows) == served_prompts(chat, tokenizer, messages, tools)


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_are_prompted_as_served_too(name):
    chat, _ = chat_for(name)
    for messages, tools in ((CHAT, None), (THOUGHTS, None), (CALLS, TOOLS), (CHAIN, TOOLS)):
        if tools and not chat.takes_tools:
            continue
        if name == "gptoss" and messages is CHAIN:
            continue  # it drops the thoughts of a chain once its answer is there; refused below
        rows, tokenizer = rows_of(name, messages, tools)
        assert trained_prompts(rows) == served_prompts(chat, tokenizer, messages, tools)
        pieces = learned(rows, tokenizer)
        answers = [message for message in messages if message.role == "assistant"]
        for piece, message in zip(pieces, answers, strict=True):
            assert piece.count(message.thought) == 1 or not message.thought
            assert piece.count(message.content) == 1 or not message.content
            assert all(call.name in piece for call in message.calls)


def test_qwen3_answer_without_a_thought_fits_both_ways_of_serving():
    chat, _ = chat_for("qwen3")
    rows, tokenizer = rows_of("qwen3", CHAT)
    silent = served_prompts(chat, tokenizer, CHAT, enable_thinking=False)
    for row, prompt in zip(rows, silent, strict=True):
        assert row.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(silent[0]).endswith("<think>\n\n</think>\n\n")


def test_r1_prompt_ends_with_the_same_tokens_where_the_thought_is_empty():
    """A tokenizer joins the line breaks of “<think>\\n” and “\\n</think>” if both are encoded at once."""
    chat, tokenizer = chat_for("deepseek_r1_distill")
    assert len(tokenizer("\n\n", add_special_tokens=False)["input_ids"]) == 1
    row = chat.row(CHAT[:3], [2])
    (prompt,) = served_prompts(chat, tokenizer, CHAT[:3])
    assert row.input_ids[: len(prompt)] == prompt
    assert learned_spans(tokenizer, row) == ["\n</think>\n\nSo.<｜end▁of▁sentence｜>"]


def test_answer_whose_first_token_reaches_into_the_prompt_is_a_row():
    chat, tokenizer = chat_for("chatml")
    messages = [message._replace(content=f"\n{message.content}") for message in CHAT]
    rows = chat.rows(messages, [2, 4], weights=(0.5, 1.0))
    assert trained_prompts(rows) == served_prompts(chat, tokenizer, messages)
    assert learned(rows, tokenizer) == ["\nSo.<|im_end|>", "\nThus.<|im_end|>"]
    assert [max(row.weights or [1.0]) for row in rows] == [0.5, 1.0]
    assert chat.row(messages, [2, 4]) is None


def test_prompt_whose_line_breaks_split_before_a_text_is_encoded_apart():
    """GPT-2's way of splitting leaves the last of two line breaks to the word behind them."""
    from tokenizers import pre_tokenizers

    _, tokenizer = chat_for("llama3")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    chat = Chat(tokenizer)
    rows = chat.rows(CHAT, [2, 4])
    assert trained_prompts(rows) == served_prompts(chat, tokenizer, CHAT)
    assert learned(rows, tokenizer) == ["So.<|eot_id|>", "Thus.<|eot_id|>"]


@pytest.mark.parametrize("name", CALL)
def test_continuation_gives_the_prompt_and_the_answer_apart(name):
    chat, tokenizer = chat_for(name)
    prompt, answer = chat.continuation(CALLS[:4], CALLS[4:5], tools=TOOLS)
    assert prompt == served_prompts(chat, tokenizer, CALLS[:5], TOOLS)[-1]
    assert tokenizer.decode(answer).endswith(f"21 degrees.{_STOP[name]}")


def test_weights_of_messages_become_weights_of_their_tokens():
    chat, tokenizer = chat_for("chatml")
    row = chat.row(CHAT, [2, 4], weights=(0.25, 1.0))
    by_weight = {
        weight: tokenizer.decode([label for label, own in zip(row.labels, row.weights, strict=True) if own == weight])
        for weight in (0.25, 1.0)
    }
    assert by_weight == {0.25: "So.<|im_end|>", 1.0: "Thus.<|im_end|>"}
    assert {own for label, own in zip(row.labels, row.weights, strict=True) if label == IGNORED} == {0.0}
    assert chat.row(CHAT, [2, 4], weights=(1.0, 1.0)).weights is None
    assert chat.row(CHAT, [2, 4]).weights is None


def test_mistral_gets_ids_of_nine_characters_whatever_the_file_has():
    chat, tokenizer = chat_for("mistral_v0_3")
    for call_id in ("call_Abc123456789", None, "9 letters"):
        messages = [CALLS[1], CALLS[2]._replace(calls=calling("Rome", call_id)), result("21", call_id), CALLS[4]]
        text = tokenizer.decode(chat.row(messages, [3], tools=TOOLS).input_ids)
        (asked,) = {part[:9] for part in text.split('"id": "')[1:]}
        (answered,) = {part[:9] for part in text.split('"call_id": "')[1:]}
        assert asked == answered
        assert asked.isascii()
        assert asked.isalnum()


def test_results_without_ids_answer_the_calls_in_their_order():
    chat, tokenizer = chat_for("mistral_v0_3")
    calls = calling("Rome", None) + calling("Oslo", None)
    messages = [CALLS[1], Message("assistant", "", calls=calls), result("21", None), result("3", None), CALLS[4]]
    text = tokenizer.decode(chat.row(messages, [1], tools=TOOLS).input_ids)
    asked = [part[:9] for part in text.split('"id": "')[1:]]
    text = tokenizer.decode(chat.row(messages, [4], tools=TOOLS).input_ids)
    assert [part[:9] for part in text.split('"call_id": "')[1:]] == asked
    assert len(set(asked)) == 2


@pytest.mark.parametrize("name", CALL)
def test_two_spellings_of_arguments_give_the_same_tokens(name):
    """As an object and as a text, in the file's order of keys and with letters of every script."""
    chat, _ = chat_for(name)
    rows = []
    for arguments in ({"city": "Zürich 漢字", "days": 2.0}, '{"city":"Z\\u00fcrich 漢字",  "days":2.0}'):
        call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        line = {"messages": [openai(CALLS[1]), {"role": "assistant", "content": None, "tool_calls": [call]}],
                "tools": json.loads(TOOLS)}  # fmt: skip
        (example,) = read_examples([json.dumps(line).encode()])
        rows.append(chat.row(example.messages, example.trained, tools=example.tools))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "mistral_v0_3", "none"])
def test_file_with_tools_thoughts_and_weights_is_learned_as_it_says(name, tmp_path):
    """From the bytes of a file as OpenAI and others write it to tokens, weights and notes."""
    chat, _ = chat_for(name)
    messages = [openai(message) for message in CHAIN]
    messages[1] |= {"content": None, "weight": 0.5}
    messages[1]["tool_calls"][0]["function"]["arguments"] = '{"city":"Rome"}'
    messages[3] = {"role": "assistant", "content": "<think>\nNow say it.\n</think>\n\n21 degrees."}
    path = tmp_path / "dataset.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": TOOLS}))
    data = prepare_data(path, chat, Hyperparameters(validation_share=0))
    expected, _ = rows_of(name, CHAIN, TOOLS)
    assert [row.input_ids for row in data.train] == [row.input_ids for row in expected]
    assert [row.labels for row in data.train] == [row.labels for row in expected]
    weights = {
        weight
        for row in data.train
        for weight, label in zip(row.weights or [1.0] * len(row.labels), row.labels, strict=True)
        if label != IGNORED
    }
    assert weights == {0.5, 1.0}
    assert any(note.startswith("Calls were learned as the base's chat template writes them") for note in data.notes)
    assert any("thoughts" in note for note in data.notes)


REFUSED = [
    ("llama3", CALLS, "uses tools, which the base's chat template does not show"),
    ("deepseek_r1_distill", CALLS, "uses tools"),
    (
        "llama3_1",
        [CALLS[1], CALLS[2]._replace(calls=calling("Rome", "1") + calling("Oslo", "2"))],
        "calls several tools",
    ),
    ("llama3_1", [CALLS[1], CALLS[2]._replace(content="I look.")], "has a text beside a call"),
    ("mistral_v0_3", [CALLS[1], CALLS[2]._replace(content="I look.")], "has a text beside a call"),
    ("mistral_v0_3", [*CALLS[1:4], Message("user", "So?"), CALLS[4]], "has turns in an order that the base's chat"),
    ("qwen3", [CHAIN[0], CHAIN[1]._replace(thought="a </think> b")], "“</think>” within a thought"),
    ("gptoss", CHAIN, "shows differently once it is there"),
]


@pytest.mark.parametrize(("name", "messages", "expected"), REFUSED)
def test_what_a_template_cannot_show_is_refused_with_its_line(name, messages, expected):
    chat, _ = chat_for(name)
    error = chat.refuse(Example(tuple(messages), (len(messages) - 1,), None, 7, tools=TOOLS))
    assert error is not None
    assert error.sentence().startswith("Line 7 of the dataset ")
    assert expected in error.sentence()
    assert error.suggestion
