"""Lines whose keys, weights, questions or answers are unusual."""

from __future__ import annotations

import json

from tests.corpus.builders import (
    ANSWER,
    GOOD,
    LEARNED,
    NEEDS,
    PAIR,
    ROLE,
    SHAPES,
    TEXT,
    WEIGHT,
    Case,
    bad_line,
    chat,
    conversation,
    lines,
    one,
    pair,
    turn,
    v3_pair,
)

ANSWERS = [
    Case(
        "parts of a system prompt with keys of their own",
        lines(
            {
                "system": [{"type": "text", "text": "s", "cache_control": {"type": "x"}}],
                "prompt": "x",
                "completion": "y",
            }
        ),
        1,
        unused="system[].cache_control (1 ×)",
    ),
    Case(
        "a key with lists in lists",
        lines({**chat(), "extra": json.loads("[" * 400 + "]" * 400)}),
        1,
        unused="extra (1 ×)",
    ),
    Case("a row with a _meta of its own", lines({**chat(), "_meta": {"source": "x"}}), 1, unused="_meta (1 ×)"),
    one(
        "a header with more than a header",
        {"_meta": {}, "text": "secret"},
        None,
        "is an object with the keys _meta, text, which is no known format",
        SHAPES,
    ),
    Case(
        "keys that nothing reads",
        lines(
            {
                "messages": [
                    {**turn("user", [{"type": "text", "text": "x", "cache_control": {"type": "y"}}]), "name": "secret"},
                    {**turn("assistant", "y"), "audio": {"id": "a"}, "name": "secret"},
                ],
                "tags": ["secret"],
                "my secret": 1,
            },
            {**chat(), "tags": ["secret"], "score": 0.5, "empty": None, "metadata": {"source": "secret"}},
        ),
        2,
        unused="tags (2 ×), messages[].name (2 ×), … (1 ×), messages[].content[].cache_control (1 ×), "
        "messages[].audio (1 ×), score (1 ×), metadata.source (1 ×)",
    ),
    Case(
        "more unused keys than a note names",
        lines({**chat(), **{f"key{n:03}": 1 for n in range(300)}}),
        1,
        unused=", ".join(["… (100 ×)", *(f"key{n:03} (1 ×)" for n in range(9))]) + " and 191 others",
    ),
    Case(
        "two system prompts",
        lines(
            {"system": "s", "messages": [turn("system", "t"), *GOOD[0]["messages"]]},
            {"system": "s", "system_prompt": "t", "messages": GOOD[0]["messages"]},
            {"system": "s", "messages": [turn("system", "s "), *GOOD[0]["messages"]]},
        ),
        3,
        repairs={"consecutive turns of one role joined": 2},
    ),
    Case(
        "questions with answers",
        lines(
            {"question": "x", "answer": "y"},
            {"query": "x", "response": "y", "history": [["a", "b"]]},
            {"input": "x", "output": "y"},
            {"prompt": "x", "response": "y"},
            {"instruction": "x", "context": "", "response": "y", "category": "open_qa"},
        ),
        5,
        unused="category (1 ×)",
    ),
    one(
        "two questions for one answer",
        {"question": "x", "prompt": "y", "answer": "z"},
        None,
        "is an object with the keys question, prompt, answer, which is no known format",
        SHAPES,
    ),
    one("an answer that is a number", {"question": "x", "answer": 3}, "answer", "is a number, not a text", TEXT),
    Case(
        "Gemini contents",
        lines(
            {
                "systemInstruction": {"parts": [{"text": "s"}]},
                "contents": [
                    {"role": "user", "parts": [{"text": "x"}]},
                    {"role": "model", "parts": [{"text": "y"}, {"text": "z"}]},
                ],
            }
        ),
        1,
    ),
    one(
        "a refusal beside null",
        {"messages": [turn("user", "x"), {**turn("assistant", None), "refusal": "secret"}]},
        "messages[1].content",
        "is null beside a refusal",
        "Write the refusal as the content to train it.",
    ),
    one(
        "audio beside null",
        {"messages": [turn("user", "x"), {**turn("assistant", None), "audio": {"id": "a"}}]},
        "messages[1].content",
        "is null beside audio",
        "Only text can be trained: write what is said.",
    ),
    one(
        "content is missing",
        {"messages": [turn("user", "x"), {"role": "assistant"}]},
        "messages[1].content",
        "is missing",
        NEEDS,
    ),
    one(
        "an answer without a visible character",
        chat(answer="\u200b\u2060\ufeff"),
        "messages[1]",
        "is an answer without a visible character",
        ANSWER,
    ),
    one(
        "a history that is a text",
        {"instruction": "x", "output": "y", "history": "z"},
        "history",
        "is a text of 1 character, not a list of questions with answers",
        "",
    ),
    one(
        "a v3 output that is a text",
        {"training_pairs": [{**v3_pair(1), "synthesized_output": "x"}]},
        "training_pairs[0].synthesized_output",
        "is a text of 1 character, not an object",
        "",
    ),
    one(
        "content is null",
        {"messages": [turn("user", "x"), turn("assistant", None)]},
        "messages[1].content",
        "is null, not a text",
        TEXT,
    ),
    one(
        "content has a picture",
        {"messages": [turn("user", [{"type": "image_url"}])]},
        "messages[0].content",
        "has a picture among its parts",
        "Only text can be trained: remove the others.",
    ),
    one("an empty answer", chat(answer=""), "messages[1]", "is an empty answer", ANSWER),
    one("a blank answer", pair(2, target_response=" \n"), "target_response", "is an empty answer", ANSWER),
    one("no answer at all", {"messages": [turn("user", "x")]}, None, "holds no answer to a user's turn", PAIR),
    Case(
        "an answer without a question",
        lines(GOOD[0], {"messages": [turn("system", "s"), turn("assistant", "x")]}),
        1,
        errors=[bad_line(2, None, "holds no answer to a user's turn", PAIR)],
        repairs={"answers before the first user turn dropped": 1},
    ),
    Case(
        "all answers with weight 0",
        lines(GOOD[0], {"messages": [turn("user", "x"), {**turn("assistant", "y"), "weight": 0}]}),
        1,
        unwanted=1,
    ),
    Case(
        "rows that ask not to be learned",
        lines(
            GOOD[0],
            {**GOOD[1], "weight": 0},
            {**GOOD[2], "train": False},
            {**pair(2), "loss": "false"},
            {"question": "x", "answer": "y", "weight": "0"},
            conversation("a", pair(2, weight=0.0)),
            {**GOOD[3], "weight": 1, "train": True},
        ),
        2,
        unwanted=5,
    ),
    Case(
        "only rows that ask not to be learned",
        lines({**GOOD[1], "weight": 0}, pair(2, target_response=None)),
        unwanted=1,
        skipped=1,
        refused=(
            "Nothing of the dataset is to be learned: it has 1 example with weight 0, train false or loss false, "
            "and 1 pair without an answer.",
            "Add at least one example that may be learned.",
        ),
    ),
    *(
        one(
            f"a weight of {weight}",
            {"messages": [turn("user", "x"), {**turn("assistant", "y"), "weight": weight}]},
            "messages[1].weight",
            "is not a number from 0 to 1",
            WEIGHT,
        )
        for weight in (-1, 1.5, "much", [0], "nan")
    ),
    one("a row's weight of 2", {**GOOD[1], "weight": 2}, "weight", "is not a number from 0 to 1", WEIGHT),
    one("a row's train in words", {**GOOD[1], "train": "maybe"}, "train", "is neither true nor false", LEARNED),
    one(
        "a loss that is a number",
        {"messages": [turn("user", "x"), {**turn("assistant", "y"), "loss": 1.5}]},
        "messages[1].loss",
        "is neither true nor false",
        LEARNED,
    ),
    Case(
        "a weight on a user's turn",
        lines({"messages": [{**turn("user", "x"), "weight": 1, "train": False}, turn("assistant", "y")]}),
        1,
        unused="messages[].weight of a turn that is no answer (1 ×)",
    ),
    one(
        "a system message in the middle",
        {"messages": [turn("user", "x"), turn("system", "y"), turn("assistant", "z")]},
        "messages[1]",
        "is a system message after the first place",
        "Put one system message first, or make it part of the user's turn.",
    ),
    one(
        "two answers in a row",
        {"messages": [turn("user", "x"), turn("assistant", "y"), turn("assistant", "z")]},
        "messages[2]",
        "is an answer directly after another answer",
        "Join the two answers, or put the user's turn between them.",
    ),
    one(
        "a ShareGPT turn without a value",
        {"conversations": [{"from": "human"}]},
        "conversations[0].value",
        "is missing",
        "Each turn needs from and value.",
    ),
    one(
        "an Alpaca output that is a list",
        {"instruction": "x", "output": []},
        "output",
        "is an empty list, not a text",
        TEXT,
    ),
    one("an empty completion", {"prompt": "x", "completion": " "}, "completion", "is an empty answer", ANSWER),
    one(
        "turns with a bad turn",
        {"conversation_id": "a", "turns": [turn("user", "x"), 3]},
        "turns[1]",
        "is a number, not an object",
        "Each turn needs role and content.",
    ),
    one(
        "history with an unknown role",
        pair(2, conversation_history=[turn("client", "x")]),
        "conversation_history[0].role",
        "is a text of 6 characters that names no role",
        ROLE,
    ),
    one(
        "a conversation whose pairs are text",
        conversation("a", "x"),
        "training_pairs[0]",
        "is a text of 1 character, not an object",
        "",
    ),
    Case(
        "consecutive user turns",
        lines({"messages": [turn("user", "x"), turn("user", "y"), turn("assistant", "z")]}),
        1,
        repairs={"consecutive turns of one role joined": 1},
    ),
    Case(
        "an opening answer",
        lines({"messages": [turn("bot", "Hi!"), turn("human", "y"), turn("bot", "z")]}),
        1,
        repairs={"answers before the first user turn dropped": 1},
    ),
    Case(
        "a question at the end",
        lines({"messages": [turn("user", "x"), turn("model", "y"), turn("user", "z")]}),
        1,
        repairs={"turns after the last answer dropped": 1},
    ),
    Case(
        "a blank turn in the history",
        lines(pair(2, conversation_history=[turn("user", "  ")])),
        1,
        repairs={"blank turns dropped": 1},
    ),
    Case("a blank system prompt", lines(pair(2, system_prompt="  ")), 1),
]
