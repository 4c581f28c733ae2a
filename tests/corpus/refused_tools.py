"""Files with tools that are refused: what is wrong in lists, calls and results, and what is said of it."""

from __future__ import annotations

import json

from tests.corpus.builders import chat, turn
from tests.corpus.reading import Reading, refuses
from tests.corpus.tools import DEEP, DONE, GET, MARKED, TOOL, call, calling, result, sharegpt, used

NOT_LISTED = "Add the tool to the list, or remove the example."
RESULTS = "Write the result of each call as a turn with the role tool, or remove the example."
CALL = "Write each call with a name and arguments."
BEFORE = "Put the answer with the call before it, or remove the example."
EACH_TOOL = "Write one object for each tool."

TOOLS_REFUSED: list[Reading] = [
    refuses(
        "text after a marked call",
        sharegpt(("human", "x"), ("gpt", f"{MARKED} Now."), ("tool", "1")),
        "conversations[1]",
        "has text after the mark <tool_call>",
        "Write the calls at the end of the answer, each between <tool_call> and </tool_call>.",
    ),
    refuses(
        "a marked call that is no JSON",
        sharegpt(("human", "x"), ("gpt", "<tool_call>get()</tool_call>"), ("tool", "1")),
        "conversations[1]",
        "is a text that is not valid JSON (Expecting value at column 1)",
        "Write it as JSON, or as the value itself.",
    ),
    refuses(
        "a tool's turn without a call",
        used(result()),
        "messages[1]",
        "is a tool's result without a call before it",
        BEFORE,
    ),
    refuses(
        "a second result of one call",
        used(calling(call()), result(), result(), DONE),
        "messages[3]",
        "is a tool's result without a call before it",
        BEFORE,
    ),
    refuses(
        "a result of another call",
        used(calling(call()), result(identity="c9"), DONE),
        "messages[2]",
        "answers a call that the answer before it doesn't make",
        "Give it the id or the name of one of the calls.",
    ),
    refuses(
        "a result of another name",
        used(calling(call(identity=None)), {**result(identity=None), "name": "put"}),
        "messages[2]",
        "answers a call that the answer before it doesn't make",
        "Give it the id or the name of one of the calls.",
    ),
    refuses(
        "a call that nobody answered",
        used(calling(call()), turn("user", "z"), DONE),
        "messages[2]",
        "follows a call that has no result",
        RESULTS,
    ),
    refuses(
        "one of two calls that nobody answered",
        used(calling(call(), call(identity="c2")), result(), DONE),
        "messages[3]",
        "follows a call that has no result",
        RESULTS,
    ),
    refuses(
        "a call of a tool that is not listed",
        used(calling(call(name="put"))),
        "messages[1]",
        "calls a tool that the row does not list",
        NOT_LISTED,
    ),
    refuses(
        "two calls of one id",
        used(calling(call(), call())),
        "messages[1].tool_calls",
        "has two calls of one id",
        "Give each call an id of its own.",
    ),
    refuses(
        "a call without a name",
        used(calling({"id": "c1", "function": {"arguments": "{}"}})),
        "messages[1].tool_calls[0].function.name",
        "is missing",
        "Each tool and each call needs the tool's name.",
    ),
    refuses(
        "a call that is a text",
        used(calling("get")),
        "messages[1].tool_calls[0]",
        "is a text of 3 characters, not an object",
        CALL,
    ),
    refuses(
        "calls that are a number",
        used({**calling(), "tool_calls": 3}),
        "messages[1].tool_calls",
        "is a number, not a list of calls",
        CALL,
    ),
    refuses(
        "a call's name that is a number",
        used(calling(call(name=3))),
        "messages[1].tool_calls[0].function.name",
        "is a number, not a tool's name",
        "Write a text of 1 to 256 characters.",
    ),
    refuses(
        "a call's id that is a number",
        used(calling({**call(), "id": 3})),
        "messages[1].tool_calls[0].id",
        "is a number, not a text",
        "Write the call's id as a text.",
    ),
    refuses(
        "a call of something else",
        used(calling({"type": "custom", "custom": {}})),
        "messages[1].tool_calls[0].type",
        "names a call of something that is no function",
        "Only functions can be trained: remove the example.",
    ),
    *(
        refuses(name, used(calling(call(arguments))), "messages[1].tool_calls[0].function.arguments", error, hint)
        for name, arguments, error, hint in (
            (
                "arguments that are a list",
                "[1]",
                "is a list of 1 element, not a JSON object",
                "Write the arguments as an object, such as {“city”: “…”}, or as a text that holds one.",
            ),
            (
                "arguments that are encoded twice",
                json.dumps('{"a": 1}'),
                "is a text of 8 characters, not a JSON object",
                "Write the arguments as an object, such as {“city”: “…”}, or as a text that holds one.",
            ),
            (
                "arguments that are no JSON",
                "{a}",
                "is a text that is not valid JSON (Expecting property name enclosed in double quotes at column 2)",
                "Write it as JSON, or as the value itself.",
            ),
            (
                "arguments with a key twice",
                '{"a": 1, "a": 2}',
                "is a text with an object that has a key twice",
                "Keep one of the two.",
            ),
            (
                "arguments with NaN",
                '{"a": NaN}',
                "holds NaN or Infinity, which JSON has not",
                "Write a number or null.",
            ),
            ("arguments without end", {"a": DEEP}, "is nested more than 64 levels deep", "Write it flatter."),
            (
                "arguments that are huge",
                {"a": "x" * 300_000},
                "is longer than 262,144 characters",
                "Shorten it or remove the example.",
            ),
        )
    ),
    refuses(
        "half a character in arguments",
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", '
        '"content": null, "tool_calls": [{"function": {"name": "get", "arguments": "{\\"a\\": \\"\\\\ud800\\"}"}}]}]}',
        "messages[1]",
        "holds half of a two-part character (a lone surrogate escape)",
        "Write the file again with whole characters: cut texts between characters.",
    ),
    refuses(
        "more calls than may be",
        used(calling(*(call(identity=f"c{n}") for n in range(129)))),
        "messages[1].tool_calls",
        "holds more than 128 calls",
        "Split the turn or remove the example.",
    ),
    refuses(
        "both kinds of calls",
        used({**calling(call()), "function_call": {"name": "get"}}),
        "messages[1].function_call",
        "stands beside tool_calls",
        "Keep one of the two.",
    ),
    refuses(
        "a call of the user",
        {"messages": [{**turn("user", "x"), "tool_calls": [call()]}, DONE]},
        "messages[0].tool_calls",
        "is a call in a turn that is no answer",
        "Give it the role assistant.",
    ),
    refuses(
        "a result without content",
        used(calling(call()), {"role": "tool", "tool_call_id": "c1"}, DONE),
        "messages[2].content",
        "is missing",
        "Each turn needs role and content.",
    ),
    refuses(
        "tools that are an object", {**chat(), "tools": TOOL}, "tools", "is an object, not a list of tools", EACH_TOOL
    ),
    refuses(
        "tools that are no JSON",
        {**chat(), "tools": "get, put"},
        "tools",
        "is a text that is not valid JSON (Expecting value at column 1)",
        "Write it as JSON, or as the value itself.",
    ),
    refuses(
        "a tool that is a text",
        {**chat(), "tools": ["get"]},
        "tools[0]",
        "is a text of 3 characters, not an object",
        EACH_TOOL,
    ),
    refuses(
        "a tool without a name",
        {**chat(), "tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "is missing",
        "Each tool and each call needs the tool's name.",
    ),
    refuses(
        "a tool that is no function",
        {**chat(), "tools": [{"type": "code_interpreter"}]},
        "tools[0].type",
        "names a tool that is no function",
        "Only functions can be trained: remove the others, and the examples that use them.",
    ),
    refuses(
        "parameters that are a list",
        {**chat(), "tools": [{**TOOL, "function": {**GET, "parameters": [1]}}]},
        "tools[0].function.parameters",
        "is a list of 1 element, not an object",
        "Write a JSON schema, an object.",
    ),
    refuses(
        "two tools of one name",
        {**chat(), "tools": [TOOL, GET]},
        "tools",
        "lists two tools of one name",
        "Keep one of the two.",
    ),
    refuses(
        "more tools than may be",
        {**chat(), "tools": [{"name": f"t{n}"} for n in range(129)]},
        "tools",
        "lists more than 128 tools",
        "Keep those that the example needs.",
    ),
    refuses(
        "two different lists of tools",
        {**chat(), "tools": [TOOL], "functions": [{"name": "put"}]},
        "functions",
        "is a second list of tools",
        "Keep one of the two.",
    ),
    refuses(
        "tools outside of the examples",
        {"data": [chat()], "tools": [TOOL]},
        "tools",
        "is a list of tools outside of the examples",
        "Write it into each example.",
    ),
]
