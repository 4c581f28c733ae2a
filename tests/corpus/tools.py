"""Files with tools: every spelling of lists, calls and results."""

from __future__ import annotations

import json
from typing import Any

from tests.corpus.builders import chat, pair, turn
from tests.corpus.reading import Reading, learns, unused

GET = {"name": "get", "description": "Gets.", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
TOOL = {"type": "function", "function": GET}
LISTED = "[" + json.dumps([TOOL]) + "] "
NO_TOOLS = "Rows call tools and list none: the base never sees what the tools are (1 ×)."


def call(arguments: Any = '{"a":"b"}', identity: str | None = "c1", name: Any = "get", **more: Any) -> dict[str, Any]:
    named = {} if identity is None else {"id": identity}
    return {**named, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calling(*calls: Any, content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def result(content: Any = "1", identity: str | None = "c1", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **({"tool_call_id": identity} if identity else {}), **more}


def used(*turns: Any, tools: Any = (TOOL,), **more: Any) -> dict[str, Any]:
    """A row that asks, and then goes on with the turns."""
    listed = {} if tools is None else {"tools": list(tools) if isinstance(tools, tuple) else tools}
    return {"messages": [turn("user", "x"), *turns], **listed, **more}


def sharegpt(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], **more}


DONE = turn("assistant", "y")
WHOLE = LISTED + 'user: x | *answer:  → get{"a": "b"}#c1 | tool get#c1: 1 | *answer: y'
WITHOUT_IDS = LISTED + 'user: x | *answer:  → get{"a": "b"} | tool get: 1 | *answer: y'
BARE = 'user: x | *answer:  → get{"a": "b"} | tool get: 1 | *answer: y'
DEEP: Any = "x"
for _ in range(70):
    DEEP = [DEEP]

TOOLS_ACCEPTED: list[Reading] = [
    learns("tools as JSON, arguments as a text", used(calling(call()), result(), DONE), WHOLE),
    learns("arguments as an object", used(calling(call({"a": "b"})), result(), DONE), WHOLE),
    learns("tools as a text", used(calling(call()), result(), DONE, tools=json.dumps([TOOL])), WHOLE),
    learns("tool calls as a text", used({**calling(), "tool_calls": json.dumps([call()])}, result(), DONE), WHOLE),
    learns("tools without a wrapper", used(calling(call()), result(), DONE, tools=(GET,)), WHOLE),
    learns("tools of the old kind", used(calling(call()), result(), DONE, tools=None, functions=[GET]), WHOLE),
    learns("the same tools in both kinds", used(calling(call()), result(), DONE, functions=[GET]), WHOLE),
    learns(
        "tools of Anthropic",
        used(
            calling(call()),
            result(),
            DONE,
            tools=({"name": "get", "description": "Gets.", "input_schema": GET["parameters"]},),
        ),
        WHOLE,
    ),
    learns(
        "a broken list in a system message after the first",
        {"messages": [turn("system", "s"), {**turn("system", "s"), "tools": "[see docs"}, turn("user", "x"), DONE]},
        "system: s | user: x | *answer: y",
        notes=(unused("messages[].tools"),),
    ),
    learns(
        "tools in the system message",
        {
            "messages": [
                {"role": "system", "content": "s", "tools": [TOOL]},
                turn("user", "x"),
                calling(call()),
                result(),
                DONE,
            ]
        },
        LISTED + 'system: s | user: x | *answer:  → get{"a": "b"}#c1 | tool get#c1: 1 | *answer: y',
    ),
    learns("tools and no call", {**chat("x", "y"), "tools": [TOOL]}, LISTED + "user: x | *answer: y"),
    learns(
        "a call of the old kind",
        {
            "messages": [
                turn("user", "x"),
                {"role": "assistant", "content": None, "function_call": {"name": "get", "arguments": '{"a": "b"}'}},
                {"role": "function", "name": "get", "content": "1"},
                DONE,
            ],
            "functions": [GET],
        },
        WITHOUT_IDS,
    ),
    learns("calls without ids", used(calling(call(identity=None)), result(identity=None), DONE), WITHOUT_IDS),
    learns(
        "a call without a wrapper",
        used(calling({"name": "get", "arguments": {"a": "b"}}), result(identity=None), DONE),
        WITHOUT_IDS,
    ),
    learns(
        "a call beside a text",
        used(calling(call(), content="Well."), result(), DONE),
        WHOLE.replace("*answer:  →", "*answer: Well. →"),
    ),
    learns("a call beside an empty text", used(calling(call(), content=""), result(), DONE), WHOLE),
    learns("a call at the end", used(calling(call())), LISTED + 'user: x | *answer:  → get{"a": "b"}#c1'),
    learns("no arguments", used(calling(call("")), result(), DONE), WHOLE.replace('{"a": "b"}', "{}")),
    learns("arguments are null", used(calling(call(None)), result(), DONE), WHOLE.replace('{"a": "b"}', "{}")),
    learns(
        "arguments with other letters and large numbers",
        used(calling(call('{"ä": 12345678901234567890123, "b": [1.50, true, null]}'))),
        LISTED + 'user: x | *answer:  → get{"ä": 12345678901234567890123, "b": [1.5, true, null]}#c1',
    ),
    learns(
        "a large number in an object",
        used(calling(call({"n": 12345678901234567890123}))),
        LISTED + 'user: x | *answer:  → get{"n": 12345678901234567890123}#c1',
    ),
    learns(
        "several calls a turn",
        used(calling(call(), call({"a": "c"}, "c2")), result("2", "c2"), result(), DONE, parallel_tool_calls=True),
        LISTED
        + 'user: x | *answer:  → get{"a": "b"}#c1 → get{"a": "c"}#c2 | tool get#c2: 2 | tool get#c1: 1 | *answer: y',
        notes=(unused("parallel_tool_calls"),),
    ),
    learns(
        "calls in two turns",
        used(calling(call()), calling(call(identity="c2")), result(), result("2", "c2"), DONE),
        LISTED
        + 'user: x | *answer:  → get{"a": "b"}#c1 → get{"a": "b"}#c2 | tool get#c1: 1 | tool get#c2: 2 | *answer: y',
        notes=("Put right: consecutive turns of one role joined (1 ×).",),
    ),
    learns(
        "a text, then a call in a turn of its own",
        used(turn("assistant", "Well."), calling(call()), result(), DONE),
        WHOLE.replace("*answer:  →", "*answer: Well. →"),
        notes=("Put right: consecutive turns of one role joined (1 ×).",),
    ),
    learns(
        "one call after another",
        used(calling(call()), result(), calling(call(identity="c2")), result("2", "c2"), DONE),
        LISTED
        + 'user: x | *answer:  → get{"a": "b"}#c1 | tool get#c1: 1 | *answer:  → get{"a": "b"}#c2 | tool get#c2: 2'
        " | *answer: y",
    ),
    learns(
        "a result and then the user",
        used(calling(call()), result(), turn("user", "z"), DONE),
        LISTED + 'user: x | *answer:  → get{"a": "b"}#c1 | tool get#c1: 1 | user: z | *answer: y',
    ),
    learns("an empty result", used(calling(call()), result(""), DONE), WHOLE.replace("#c1: 1", "#c1: ")),
    learns("a result that is null", used(calling(call()), result(None), DONE), WHOLE.replace("#c1: 1", "#c1: ")),
    learns(
        "a result that is an object",
        used(calling(call()), result({"t": 1}), DONE),
        WHOLE.replace("#c1: 1", '#c1: {"t": 1}'),
    ),
    learns("a result in parts", used(calling(call()), result([{"type": "text", "text": "1"}]), DONE), WHOLE),
    learns("a result with its name", used(calling(call()), result(name="get"), DONE), WHOLE),
    learns(
        "an opening call",
        {"messages": [calling(call()), result(), turn("user", "x"), DONE], "tools": [TOOL]},
        LISTED + "user: x | *answer: y",
        notes=("Put right: answers before the first user turn dropped (1 ×).",),
    ),
    learns("a call that is context", used({**calling(call()), "weight": 0}, result(), DONE), WHOLE.replace("*", "", 1)),
    learns(
        "a result after the last learned answer",
        used(calling(call()), result(), {**DONE, "weight": 0}),
        LISTED + 'user: x | *answer:  → get{"a": "b"}#c1',
        notes=("Put right: turns after the last answer dropped (2 ×).",),
    ),
    learns(
        "calls without a list of tools",
        used(calling(call()), result(), DONE, tools=None),
        WHOLE.removeprefix(LISTED),
        notes=(NO_TOOLS,),
    ),
    learns(
        "keys of calls and tools that nothing reads",
        used(calling({**call(), "index": 0}), result(status="ok"), DONE, tools=({**TOOL, "strict": True},)),
        WHOLE,
        notes=(unused("tools[].strict", "messages[].tool_calls[].index", "messages[].status"),),
    ),
    learns(
        "a function call of ShareGPT",
        sharegpt(
            ("human", "x"),
            ("function_call", '{"name": "get", "arguments": {"a": "b"}}'),
            ("observation", "1"),
            ("gpt", "y"),
            tools=json.dumps([GET]),
        ),
        WITHOUT_IDS,
    ),
    learns(
        "two calls of ShareGPT in one turn",
        sharegpt(
            ("human", "x"),
            ("function_call", '[{"name": "get", "arguments": {}}, {"name": "get", "arguments": {}}]'),
            ("observation", "1"),
            ("observation", "2"),
            ("gpt", "y"),
        ),
        "user: x | *answer:  → get{} → get{} | tool get: 1 | tool get: 2 | *answer: y",
        notes=(NO_TOOLS,),
    ),
    learns(
        "other roles of ShareGPT",
        sharegpt(("user", "x"), ("tool_call", {"name": "get", "parameters": {"a": "b"}}), ("tool", "1"), ("gpt", "y")),
        BARE,
        notes=(NO_TOOLS,),
    ),
    learns(
        "a thought before a function call",
        sharegpt(
            ("human", "x"),
            ("function_call", '<think>t</think>{"name": "get", "arguments": {}}'),
            ("tool", "1"),
            ("gpt", "y"),
        ),
        "user: x | *answer: <t> → get{} | tool get: 1 | *answer: y",
        notes=(NO_TOOLS,),
    ),
    learns(
        "calls and results of Gemini",
        {
            "contents": [
                {"role": "user", "parts": [{"text": "x"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "get", "args": {"a": "b"}}}]},
                {"role": "function", "parts": [{"functionResponse": {"name": "get", "response": {"t": 1}}}]},
                {"role": "model", "parts": [{"text": "y"}]},
            ],
            "tools": [{"functionDeclarations": [GET]}],
        },
        WITHOUT_IDS.replace("get: 1", 'get: {"t": 1}'),
    ),
    learns(
        "calls and results of Anthropic",
        used(
            turn(
                "assistant",
                [
                    {"type": "text", "text": "Well."},
                    {"type": "tool_use", "id": "c1", "name": "get", "input": {"a": "b"}},
                ],
            ),
            turn("user", [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "1"}]}]),
            DONE,
        ),
        WHOLE.replace("*answer:  →", "*answer: Well. →"),
    ),
    learns(
        "a result and a question in one turn of Anthropic",
        used(
            turn("assistant", [{"type": "tool_use", "id": "c1", "name": "get", "input": {"a": "b"}, "cache": 1}]),
            turn("user", [{"type": "tool_result", "tool_use_id": "c1", "content": "1"}, {"type": "text", "text": "z"}]),
            DONE,
        ),
        LISTED + 'user: x | *answer:  → get{"a": "b"}#c1 | tool get#c1: 1 | user: z | *answer: y',
        notes=(unused("messages[].content[].cache"),),
    ),
    learns(
        "a call in the history of a pair",
        pair(
            2,
            conversation_history=[turn("user", "w"), calling(call()), result(), turn("assistant", "v")],
            current_user_input="x",
            target_response="y",
            tools=[TOOL],
        ),
        LISTED + 'system: Be kind. | user: w | answer:  → get{"a": "b"}#c1 | tool get#c1: 1 | answer: v | user: x'
        " | *answer: y",
    ),
    learns(
        "a completion that calls",
        {"prompt": [turn("user", "x")], "completion": [calling(call())], "tools": [TOOL]},
        LISTED + 'user: x | *answer:  → get{"a": "b"}#c1',
    ),
]

TOOLS_ACCEPTED += [
    learns(
        "keys in a function call of ShareGPT, and in parts of a result",
        [
            sharegpt(("human", "x"), ("function_call", {"name": "get", "index": 1}), ("tool", "1"), ("gpt", "y")),
            used(
                calling(call()),
                turn(
                    "user",
                    [
                        {
                            "type": "tool_result",
                            "tool_use_id": "c1",
                            "content": [{"type": "text", "text": "1", "cached": True}],
                        }
                    ],
                ),
                DONE,
            ),
        ],
        "user: x | *answer:  → get{} | tool get: 1 | *answer: y",
        WHOLE,
        notes=(NO_TOOLS, unused("conversations[].value.index", "messages[].content[].content[].cached")),
    ),
    learns(
        "a call of the old kind with a key that nothing reads",
        used({"role": "assistant", "content": None, "function_call": {"name": "get", "arguments": {}, "index": 1}}),
        LISTED + "user: x | *answer:  → get{}",
        notes=(unused("messages[].function_call.index"),),
    ),
]
MARKED = '<tool_call>\n{"name": "get", "arguments": {"a": "b"}}\n</tool_call>'
TOOLS_ACCEPTED += [
    learns(
        "marked calls of Hermes",
        sharegpt(
            ("human", "x"), ("gpt", MARKED), ("tool", "<tool_response>\n1\n</tool_response>"), ("gpt", "y"), tools=[GET]
        ),
        WITHOUT_IDS,
    ),
    learns(
        "two marked calls after a text",
        sharegpt(
            ("human", "x"),
            ("gpt", f"Well.\n{MARKED}\n{MARKED}"),
            ("tool", "<tool_response>1</tool_response>\n<tool_response>2</tool_response>"),
            ("gpt", "y"),
            tools=[GET],
        ),
        LISTED + 'user: x | *answer: Well. → get{"a": "b"} → get{"a": "b"} | tool get: 1 | tool get: 2 | *answer: y',
    ),
    learns("a marked call without a tool's turn", chat("x", MARKED), f"user: x | *answer: {MARKED}"),
    learns(
        "a result with text beside its mark",
        used(calling(call()), result("<tool_response>1</tool_response>2"), DONE),
        WHOLE.replace("#c1: 1", "#c1: <tool_response>1</tool_response>2"),
    ),
]
