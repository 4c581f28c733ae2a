"""Files with reasoning: every place where files put it, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from tests.corpus.builders import chat, pair, turn, v3_pair
from tests.corpus.reading import Reading, learns, refuses, unused

LEARNED = "user: x | *answer: <t>y"
SPLIT = "Write one thought, before the answer."
KEEP = "Keep one of them."
READABLE = "Write the thought as a text, or remove it to train the answer alone."


def answering(content: Any = "y", **more: Any) -> dict[str, Any]:
    return {"messages": [turn("user", "x"), {**turn("assistant", content), **more}]}


ACCEPTED = [
    learns("a thought in the content", answering("<think>\nt\n</think>\n\ny"), LEARNED),
    learns("a thought without line breaks", answering("<think>t</think>y"), LEARNED),
    learns("a thought after blank lines", answering("\n\n<think>\r\nt\r\n</think>\r\ny"), LEARNED),
    learns("a thought that only ends", answering("t\n</think>\n\ny"), LEARNED),
    learns("a thought of several lines", answering("<think>\na\n\n b\n</think>y"), "user: x | *answer: <a\n\n b>y"),
    learns("an empty thought", answering("<think>\n\n</think>\n\ny"), "user: x | *answer: y"),
    *(
        learns(f"a thought in {key}", answering(**{key: "t"}), LEARNED)
        for key in ("reasoning_content", "reasoning", "thinking", "thought")
    ),
    learns("a thought with its marks in a key", answering(reasoning_content="<think>\nt\n</think>"), LEARNED),
    learns("a thought in blocks", answering(thinking_blocks=[{"type": "thinking", "thinking": "t"}]), LEARNED),
    learns(
        "a thought in details",
        answering(reasoning="t", reasoning_details=[{"type": "reasoning.text", "text": "t", "format": "f"}]),
        LEARNED,
        notes=(unused("messages[].reasoning_details[].format"),),
    ),
    learns("a thought that looks like JSON", answering(reasoning="[1] {t}"), "user: x | *answer: <[1] {t}>y"),
    learns(
        "a thought in an object",
        answering(thinking={"content": "t", "tokens": 9}),
        LEARNED,
        notes=(unused("messages[].thinking.tokens"),),
    ),
    learns("thoughts in a list of texts", answering(thought=["s", "t"]), "user: x | *answer: <s\n\nt>y"),
    learns(
        "thoughts of two answers in a row",
        {
            "messages": [
                turn("user", "w"),
                {**turn("assistant", "<think>s</think>u"), "weight": 0},
                {**turn("assistant", "<think>t</think>v"), "weight": 0},
                turn("user", "x"),
                turn("assistant", "y"),
            ]
        },
        "user: w | answer: <s\n\nt>u\n\nv | user: x | *answer: y",
        notes=("Put right: consecutive turns of one role joined (1 ×).",),
    ),
    learns("the same thought in two places", answering("<think>t</think>y", reasoning_content="\nt\n"), LEARNED),
    learns(
        "a thought in parts",
        answering([{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "y"}]),
        LEARNED,
        notes=(unused("messages[].content[].signature"),),
    ),
    learns(
        "a part of the kind reasoning",
        answering([{"type": "reasoning", "text": "t"}, {"type": "text", "text": "y"}]),
        LEARNED,
    ),
    learns(
        "a thought of Gemini",
        {
            "contents": [
                {"role": "user", "parts": [{"text": "x"}]},
                {"role": "model", "parts": [{"text": "t", "thought": True}, {"text": "y"}]},
            ]
        },
        LEARNED,
    ),
    learns(
        "a thought beside a call",
        answering(None, reasoning_content="t", tool_calls=[{"name": "get"}]),
        "user: x | *answer: <t> → get{}",
        notes=("Rows call tools and list none: the base never sees what the tools are (1 ×).",),
    ),
    learns(
        "a thought of ShareGPT",
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<think>t</think>y"}]},
        LEARNED,
    ),
    learns("a thought of a question's answer", {"question": "x", "answer": "y", "reasoning": "t"}, LEARNED),
    learns(
        "a thought of a question's answer in parts",
        {"question": "x", "completion": [{"type": "text", "text": "y"}], "reasoning": "t"},
        LEARNED,
    ),
    learns("a thought of an instruction's output", {"instruction": "x", "output": "<think>t</think>y"}, LEARNED),
    learns("a thought of a completion", {"prompt": "x", "completion": "y", "thinking": "t"}, LEARNED),
    learns(
        "a thought of a pair",
        pair(2, system_prompt="", current_user_input="turn 1", target_response="<think>t</think>y"),
        "user: turn 1 | *answer: <t>y",
    ),
    learns(
        "a thought of v3", {"training_pairs": [v3_pair(1, "<think>t</think>y")]}, "user: Question 1? | *answer: <t>y"
    ),
    learns(
        "a thought in a history",
        {"instruction": "x", "output": "y", "history": [["a", "<think>t</think>b"]]},
        "user: a | answer: <t>b | user: x | *answer: y",
    ),
    learns(
        "a thought of an answer that is context",
        {
            "messages": [
                turn("user", "w"),
                {**turn("assistant", "v"), "reasoning": "t", "train": False},
                turn("user", "x"),
                turn("assistant", "y"),
            ]
        },
        "user: w | answer: <t>v | user: x | *answer: y",
    ),
    learns(
        "thoughts over several turns",
        {
            "messages": [
                turn("user", "w"),
                turn("assistant", "<think>s</think>v"),
                turn("user", "x"),
                turn("assistant", "<think>t</think>y"),
            ]
        },
        "user: w | *answer: <s>v | user: x | *answer: <t>y",
    ),
    learns(
        "a mark in the middle that is never closed",
        answering("Write <think> first."),
        "user: x | *answer: Write <think> first.",
    ),
    learns("marks in a question", chat("<think>x</think>", "y"), "user: <think>x</think> | *answer: y"),
    learns(
        "reasoning of the user",
        {"messages": [{**turn("user", "x"), "reasoning": "t"}, turn("assistant", "y")]},
        "user: x | *answer: y",
        notes=(unused("messages[].reasoning"),),
    ),
]

CONTENT = "messages[1].content"
REFUSED = [
    refuses(
        "a block of another kind",
        answering(thinking_blocks=[{"type": "picture", "text": "t"}]),
        "messages[1].thinking_blocks[0].type",
        "names no kind of reasoning",
        READABLE,
    ),
    refuses(
        "a thought that never ends",
        answering("<think>\nt y"),
        CONTENT,
        "opens <think> and never closes it",
        "Close the thought with </think>, or remove it.",
    ),
    refuses(
        "two thoughts in a content",
        answering("<think>s</think><think>t</think>y"),
        CONTENT,
        "has several <think> marks",
        SPLIT,
    ),
    refuses(
        "a thought in a thought",
        answering("<think>s<think>t</think></think>y"),
        CONTENT,
        "has several <think> marks",
        SPLIT,
    ),
    refuses(
        "a thought in the middle",
        answering("Well. <think>t</think>y"),
        CONTENT,
        "has a thought after its beginning",
        "Write the thought before the answer.",
    ),
    refuses(
        "two different thoughts",
        answering("<think>s</think>y", reasoning_content="t"),
        "messages[1]",
        "has two different thoughts, in <think> and in reasoning_content",
        KEEP,
    ),
    refuses(
        "two keys with different thoughts",
        answering(reasoning="s", thinking="t"),
        "messages[1]",
        "has two different thoughts, in reasoning and in thinking",
        KEEP,
    ),
    refuses(
        "a thought and no answer",
        answering("<think>t</think>"),
        "messages[1]",
        "is an empty answer",
        "Write the answer or remove the example.",
    ),
    refuses(
        "an answer in the key of a thought",
        answering(reasoning="<think>t</think>z"),
        "messages[1].reasoning",
        "goes on after </think>",
        "Write the answer into the content.",
    ),
    refuses(
        "a thought that is a number",
        answering(reasoning=3),
        "messages[1].reasoning",
        "is a number, not a text",
        READABLE,
    ),
    refuses(
        "a thought without a text",
        answering(thinking_blocks=[{"type": "thinking"}]),
        "messages[1].thinking_blocks[0]",
        "is an object without a thought's text",
        READABLE,
    ),
    refuses(
        "an encrypted thought",
        answering(reasoning_details=[{"type": "reasoning.encrypted", "data": "secret"}]),
        "messages[1].reasoning_details[0]",
        "is encrypted reasoning",
        READABLE,
    ),
    refuses(
        "an encrypted part",
        answering([{"type": "redacted_thinking", "data": "secret"}]),
        "messages[1].content[0]",
        "is encrypted reasoning",
        READABLE,
    ),
    refuses(
        "a thought of a row with turns",
        {**chat(), "reasoning": "t"},
        "reasoning",
        "is reasoning outside of an answer",
        "Write it into the answer that it led to.",
    ),
    refuses(
        "half a character in a thought",
        '{"question": "x", "answer": "y", "reasoning": "\\ud800"}',
        "answer",
        "holds half of a two-part character (a lone surrogate escape)",
        "Write the file again with whole characters: cut texts between characters.",
    ),
    refuses(
        "a thought in a question",
        {"question": [{"type": "thinking", "thinking": "t"}], "answer": "y"},
        "question",
        "has reasoning among its parts",
        "Only turns of a conversation may hold it: write the example as messages.",
    ),
]

THOUGHTS: list[Reading] = ACCEPTED + REFUSED
