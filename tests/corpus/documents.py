"""Datasets that are one JSON document: lists, full files, pretty-printed ones."""

from __future__ import annotations

import json

from tests.corpus.builders import (
    GOOD,
    LONG,
    ONE_LIST,
    PRETTY,
    PRETTY_FULL_WRONG,
    PRETTY_WRONG_ROLE,
    ROLE,
    TEXT,
    TURN,
    Case,
    bad_line,
    chat,
    conversation,
    full_file,
    line_of,
    lines,
    pair,
    sharegpt,
    turn,
    v3_pair,
)

DOCUMENTS = [
    Case(
        "a list that lacks a comma",
        b'[\n{"messages": []}\n{"messages": []}\n]',
        refused=("Line 3 of the dataset is not valid JSON (Expecting ',' at column 1).", "Fix the line."),
        errors=[bad_line(2, "[0].messages", "is empty", f"{TURN[:-1]}, or remove the example.")],
    ),
    Case(
        "a list with a comma too many",
        json.dumps(GOOD[:2]).encode()[:-1] + b",\n]",
        2,
        repairs={"commas after examples dropped": 1},
    ),
    Case(
        "pretty objects with commas between",
        b",\n".join(json.dumps(value, indent=2).encode() for value in GOOD[:3]) + b",\n",
        3,
        repairs={"commas after examples dropped": 3},
    ),
    Case(
        "one line with a comma",
        json.dumps(GOOD[0]).encode() + b",",
        1,
        repairs={"commas after examples dropped": 1},
    ),
    Case(
        "a comma before the first example",
        b"[\n," + json.dumps(GOOD[0]).encode() + b"]",
        refused=("Line 2 of the dataset is not valid JSON (Expecting value at column 1).", "Fix the line."),
    ),
    Case("a list under data", json.dumps({"data": GOOD[:3]}).encode(), 3),
    Case(
        "a pretty list under examples",
        json.dumps({"version": 1, "examples": GOOD}, indent=1).encode(),
        20,
        unused="version (1 ×)",
    ),
    Case("a list under data on a line of many", lines({"data": GOOD[:3]}, GOOD[3]), 4),
    Case(
        "a wrong role under data",
        json.dumps({"data": [GOOD[0], {"messages": [turn("narrator", "x")]}]}, indent=1).encode(),
        1,
        errors=[bad_line(18, "data[1].messages[0].role", "is a text of 8 characters that names no role", ROLE)],
    ),
    Case(
        "an example with data of its own",
        json.dumps({**GOOD[0], "data": [{"a": 1}]}, indent=1).encode(),
        1,
        unused="data (1 ×)",
    ),
    Case(
        "an example beside a list of examples",
        json.dumps({"data": GOOD[:2], **GOOD[2]}, indent=1).encode(),
        2,
        errors=[bad_line(1, None, "holds an example beside the list data", ONE_LIST)],
    ),
    Case(
        "two lists of examples on a line",
        lines(GOOD[0], {"data": GOOD[:1], "rows": GOOD[1:2]}),
        1,
        errors=[bad_line(2, None, "holds two lists, data and rows", ONE_LIST)],
    ),
    Case(
        "two lists of examples in a document",
        json.dumps({"data": GOOD[:2], "rows": GOOD[2:5]}, indent=1).encode(),
        refused=("Line 1 of the dataset holds two lists, data and rows.", ONE_LIST),
        examples=2,
    ),
    Case(
        "the list of examples twice",
        b'{"conversations": [' + json.dumps(GOOD[0]).encode() + b'],\n"conversations": []}',
        1,
        refused=("Line 1 of the dataset has the key conversations twice.", "Keep one of the two."),
    ),
    Case(
        "a split dictionary",
        json.dumps({"train": GOOD[:2], "test": GOOD[2:3]}).encode(),
        errors=[
            bad_line(
                1,
                None,
                "holds examples under train, test, which is no known format",
                "Upload one list of examples, or JSON Lines, with one example a line.",
            )
        ],
        refused=(
            "Line 1 of the dataset holds examples under train, test, which is no known format.",
            "Upload one list of examples, or JSON Lines, with one example a line.",
        ),
    ),
    Case(
        "an object with more keys than examples need",
        json.dumps({"data": GOOD[:1], **{f"key{n}": n for n in range(1001)}}).encode(),
        1,
        refused=("Line 1 of the dataset is an object with more than 1,000 keys.", None),
    ),
    Case("lists of turns", json.dumps([GOOD[0]["messages"], GOOD[1]["messages"]]).encode(), 2),
    Case(
        "lists of turns with a wrong one",
        json.dumps(
            [*[good["messages"] for good in GOOD], [turn("user", "x"), turn("narrator", "y")]], indent=1
        ).encode(),
        20,
        errors=[bad_line(208, "[20][1].role", "is a text of 8 characters that names no role", ROLE)],
    ),
    Case(
        "lists of examples in a list",
        json.dumps([*GOOD, GOOD[:2]]).encode(),
        20,
        errors=[
            bad_line(
                1,
                "[20]",
                "is a list of 2 elements, not an object",
                "Write each example as an object, such as messages with its turns.",
            )
        ],
    ),
    Case(
        "a conversation's turns as the outermost list",
        json.dumps([turn("user", "x"), turn("assistant", "y")], indent=1).encode(),
        errors=[
            bad_line(
                line,
                f"[{index}]",
                "is a single turn, not a conversation",
                "Put all turns of a conversation into the messages of one object.",
            )
            for index, line in enumerate((2, 6))
        ],
        refused=(
            "2 of 2 examples of the dataset can't be used (100% may be bad). Line 2 of the dataset: [0] is a single "
            "turn, not a conversation. Look also at line 6.",
            "Put all turns of a conversation into the messages of one object.",
        ),
    ),
    Case(
        "a pretty document with a missing quote",
        PRETTY.replace(b'"Answer 2."', b'"Answer 2.', 1),
        1,
        refused=(
            f"Line {line_of(PRETTY, 'Answer 2.')} of the dataset is not valid JSON "
            "(Invalid control character at column 30).",
            "Fix the line.",
        ),
    ),
    Case(
        "text after the document",
        json.dumps(GOOD[:2]).encode() + b"\nthe end",
        2,
        refused=("Line 2 of the dataset is not valid JSON (Expecting '{' or '[' at column 1).", "Fix the line."),
    ),
    Case(
        "an object with a bare key",
        b"{\n  messages: []\n}",
        refused=(
            "Line 2 of the dataset is not valid JSON (Expecting property name enclosed in double quotes at column 3).",
            "Fix the line.",
        ),
    ),
    Case(
        "a document that is not UTF-8",
        json.dumps([chat("Wo?", "Köln")], indent=1, ensure_ascii=False).encode("latin-1"),
        refused=(
            "Line 10 of the dataset is not UTF-8 (byte 0xf6).",
            "Save the file as UTF-8 and upload it again.",
        ),
    ),
    Case(
        "nesting without end",
        b"[" * 100_000,
        refused=("Line 1 of the dataset is not valid JSON (nested too deeply).", "Fix the line."),
    ),
    Case(
        "an element above the limit",
        json.dumps([chat(answer=LONG)]).encode(),
        refused=(
            "Line 1 of the dataset is longer than 4 MB.",
            "No model reads that much in one example: split it, one example a line.",
        ),
    ),
    Case(
        "a wrong role in a pretty list",
        PRETTY_WRONG_ROLE,
        3,
        errors=[
            bad_line(
                line_of(PRETTY_WRONG_ROLE, "narrator"),
                "[3].messages[1].role",
                "is a text of 8 characters that names no role",
                ROLE,
            )
        ],
    ),
    Case(
        "a wrong type in a pretty full file",
        PRETTY_FULL_WRONG,
        3,
        errors=[
            bad_line(
                line_of(PRETTY_FULL_WRONG, '"target_response": 7'),
                "conversations[1].training_pairs[1].target_response",
                "is a number, not a text",
                TEXT,
            )
        ],
        repairs={"doubled user turns dropped": 3},
    ),
    Case("a full file on one line", full_file(conversation("a", pair(2), pair(3, target_response=None))), 1, skipped=1),
    Case("a pretty full file", full_file(conversation("a", pair(2), pair(4)), indent=4), 2),
    Case("two lists in a row", json.dumps(GOOD[:2]).encode() + b"\n" + json.dumps(GOOD[2:5]).encode(), 5),
    Case("pretty objects in a row", b"\n".join(json.dumps(value, indent=2).encode() for value in GOOD[:3]), 3),
    Case("one pretty ShareGPT conversation", json.dumps(sharegpt("a", "b", "c", "d"), indent=2).encode(), 1),
    Case("a list of ShareGPT conversations", json.dumps([sharegpt("a", "b"), sharegpt("c", "d")]).encode(), 2),
    Case("old Macintosh line ends", lines(*GOOD[:3], end="\r"), 3),
    Case(
        "a single conversation",
        json.dumps({"name": "x", **conversation("a", pair(2), pair(4))}, indent=1).encode(),
        2,
        unused="name (1 ×)",
    ),
    Case("v3, single", json.dumps({"training_pairs": [v3_pair(1), v3_pair(2)]}).encode(), 1),
    Case(
        "v3 with an answer that is a number",
        lines(GOOD[0], {"training_pairs": [v3_pair(1), v3_pair(2, 5)]}),
        1,
        errors=[bad_line(2, "training_pairs[1].synthesized_output.response_to_user", "is a number, not a text", TEXT)],
    ),
    Case(
        "v3, file with metadata",
        json.dumps(
            {"dataset_metadata": {}, "conversations": [conversation("a", v3_pair(1), v3_pair(2, None))]}
        ).encode(),
        1,
        repairs={"turns after the last answer dropped": 1},
    ),
]
