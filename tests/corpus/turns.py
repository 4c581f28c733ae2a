"""Lines whose format or roles are unusual."""

from __future__ import annotations

from tests.corpus.builders import (
    ROLE,
    SHAPES,
    TURN,
    Case,
    lines,
    one,
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
