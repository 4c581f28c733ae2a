"""Lines whose format, roles, tools or reasoning are unusual."""

from __future__ import annotations

from tests.corpus.builders import (
    REASONING,
    ROLE,
    SHAPES,
    TOOLS,
    TURN,
    Case,
    chat,
    lines,
    one,
    pair,
    sharegpt,
    turn,
    v3_pair,
)

TURNS = [
    one("a line that is a text", '"hello"', None, "is a text of 5 characters, not an object", SHAPES),
    one("a line that is null", "null", None, "is null, not an object", SHAPES),
    one("an empty object", "{}", None, "is an object without keys, which is no known format", SHAPES),
    one(
        "unknown keys",
        {"text": "secret", "my secret": 1},
        None,
        "is an object with the keys text, …, which is no known format",
        SHAPES,
    ),
    one(
        "a pair without its answer's key",
        {"current_user_input": "Hi"},
        "target_response",
        "is missing",
        "Each pair needs current_user_input and target_response.",
    ),
    one(
        "messages is a text",
        {"messages": "hello"},
        "messages",
        "is a text of 5 characters, not a list of turns",
        "Write one object for each turn.",
    ),
    one("messages is empty", {"messages": []}, "messages", "is empty", f"{TURN[:-1]}, or remove the example."),
    one("turns is empty", {"turns": []}, "turns", "is empty", f"{TURN[:-1]}, or remove the example."),
    one(
        "a message is a text",
        {"messages": ["hello"]},
        "messages[0]",
        "is a text of 5 characters, not an object",
        "Each turn needs role and content.",
    ),
    one(
        "a role that is unknown",
        {"messages": [turn("narrator", "x")]},
        "messages[0].role",
        "is a text of 8 characters that names no role",
        ROLE,
    ),
    one("a role that is missing", {"messages": [{"content": "x"}]}, "messages[0].role", "is missing", ROLE),
    one(
        "a role that is a list",
        {"messages": [turn([], "x")]},
        "messages[0].role",
        "is an empty list that names no role",
        ROLE,
    ),
    one(
        "a tool's turn",
        {"messages": [turn("user", "x"), turn("tool", "y")]},
        "messages[1].role",
        "is a tool's turn",
        TOOLS,
    ),
    one(
        "tools beside a text",
        {**chat(), "tools": [{"type": "function"}]},
        "tools",
        "is a list of tools",
        TOOLS,
    ),
    one(
        "a tool call beside a text",
        {"messages": [turn("user", "x"), {**turn("assistant", "y"), "tool_calls": [{}]}], "tools": [{}]},
        "messages[1].tool_calls",
        "is a tool call",
        TOOLS,
    ),
    one(
        "a tool call beside null",
        {"messages": [turn("user", "x"), {**turn("assistant", None), "tool_calls": [{}]}, turn("tool", "1")]},
        "messages[1].tool_calls",
        "is a tool call",
        TOOLS,
    ),
    one(
        "a call of the old kind beside an empty text",
        {"messages": [turn("user", "x"), {**turn("assistant", ""), "function_call": {"name": "f"}}]},
        "messages[1].function_call",
        "is a tool call",
        TOOLS,
    ),
    one(
        "a tool call in a history",
        pair(2, conversation_history=[{**turn("assistant", "x"), "tool_calls": [{}]}]),
        "conversation_history[0].tool_calls",
        "is a tool call",
        TOOLS,
    ),
    one(
        "a tool call among parts",
        {"messages": [turn("user", "x"), turn("assistant", [{"type": "text", "text": "a"}, {"type": "tool_use"}])]},
        "messages[1].content",
        "has a tool call among its parts",
        TOOLS,
    ),
    one(
        "a ShareGPT observation",
        sharegpt("a", "b") | {"conversations": [{"from": "observation", "value": "x"}]},
        "conversations[0].from",
        "is a tool's turn",
        TOOLS,
    ),
    Case(
        "an export with empty keys",
        lines(
            {
                "messages": [
                    turn("user", "x"),
                    {**turn("assistant", "y"), "tool_calls": None, "refusal": None, "audio": None, "annotations": []},
                ],
                "tools": [],
                "functions": None,
                "reasoning": "",
            }
        ),
        1,
    ),
    one(
        "reasoning beside an answer",
        {"messages": [turn("user", "x"), {**turn("assistant", "y"), "reasoning_content": "secret"}]},
        "messages[1].reasoning_content",
        "holds reasoning",
        REASONING,
    ),
    one(
        "thinking beside a ShareGPT answer",
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "thinking": "secret"}]},
        "conversations[1].thinking",
        "holds reasoning",
        REASONING,
    ),
    one(
        "reasoning of a row",
        {"question": "x", "answer": "y", "reasoning": "secret"},
        "reasoning",
        "holds reasoning",
        REASONING,
    ),
    one(
        "reasoning among parts",
        {"messages": [turn("user", "x"), turn("assistant", [{"type": "thinking", "thinking": "secret"}])]},
        "messages[1].content",
        "has reasoning among its parts",
        REASONING,
    ),
    Case(
        "reasoning of a turn that is not learned",
        lines(
            {
                "messages": [
                    turn("user", "x"),
                    {**turn("assistant", "y"), "reasoning_content": "secret", "train": False},
                    turn("user", "x"),
                    turn("assistant", "y"),
                ]
            }
        ),
        1,
        unused="messages[].reasoning_content (1 ×)",
    ),
    Case(
        "a v3 pair that asks not to be learned",
        lines(
            {"training_pairs": [{**v3_pair(1), "train": False}, v3_pair(2)]},
            {"training_pairs": [{**v3_pair(1), "weight": 0}]},
        ),
        1,
        unwanted=1,
    ),
]
