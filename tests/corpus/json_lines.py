"""Lines whose JSON is broken or unusual, before anything is known of their format."""

from __future__ import annotations

import json

from tests.corpus.builders import (
    FIX,
    GOOD,
    LONG,
    META,
    SEVENTEENTH,
    SHAPES,
    Case,
    bad_line,
    chat,
    lines,
    one,
    pair,
)

JSON_LINES = [
    Case(
        "not JSON on line 17",
        lines(*SEVENTEENTH),
        19,
        errors=[bad_line(17, None, "is not valid JSON (Expecting ',' delimiter at column 31)", FIX)],
    ),
    Case("byte order mark", b"\xef\xbb\xbf" + lines(*GOOD), 20),
    Case("windows line ends", lines(*GOOD, end="\r\n"), 20),
    Case(
        "windows line ends, wrong on line 3",
        lines(*GOOD[:2], "{]", *GOOD[:2], end="\r\n"),
        4,
        errors=[
            bad_line(3, None, "is not valid JSON (Expecting property name enclosed in double quotes at column 2)", FIX)
        ],
    ),
    Case(
        "blank lines between, wrong on line 5",
        b"\n\n" + lines(GOOD[0], "", "[1]"),
        1,
        errors=[bad_line(5, None, "is a list of 1 element, not an object", SHAPES)],
    ),
    Case("no newline at the end", lines(*GOOD)[:-1], 20),
    Case("line separators inside a text", lines(chat("a\u2028b\u2029c\x85d", "e\u2028f")), 1),
    Case("one line", json.dumps(GOOD[0]).encode(), 1),
    Case("the header's count is a lie", lines(META, pair(2), pair(4)), 2, repairs={"doubled user turns dropped": 2}),
    Case("null answers are no errors", lines(META, pair(2), pair(4, target_response=None)), 1, skipped=1),
    Case(
        "a first line that is broken",
        lines('{"messages": [', *GOOD[:3]),
        3,
        errors=[bad_line(1, None, "is not valid JSON (Expecting value at column 15)", FIX)],
    ),
    Case(
        "a first line that is a comment",
        lines("# my data", *GOOD[:3]),
        3,
        errors=[bad_line(1, None, "is not valid JSON (Expecting value at column 1)", FIX)],
    ),
    Case(
        "a comma after each line",
        lines(*(json.dumps(value) + "," for value in GOOD[:2]), GOOD[0]),
        3,
        repairs={"commas after examples dropped": 2},
    ),
    Case(
        "a comma after each line, windows line ends, wrong on line 2",
        lines(json.dumps(GOOD[0]) + ", ", "{],", json.dumps(GOOD[1]) + ",", end="\r\n"),
        2,
        errors=[
            bad_line(2, None, "is not valid JSON (Expecting property name enclosed in double quotes at column 2)", FIX)
        ],
        repairs={"commas after examples dropped": 2},
    ),
    Case(
        "two examples on a line",
        lines(GOOD[0], json.dumps(GOOD[1]) + ", " + json.dumps(GOOD[2])),
        1,
        errors=[bad_line(2, None, "is not valid JSON (Extra data at column 106)", FIX)],
    ),
    one(
        "a key twice",
        '{"messages": [], ' + json.dumps(GOOD[0])[1:],
        None,
        "has the key messages twice",
        "Keep one of the two.",
    ),
    one(
        "a key twice within a turn",
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content" : "y", "content" : "z"}]}',
        None,
        "has the key content twice",
        "Keep one of the two.",
    ),
    Case("a quote with a colon in a text", lines(chat('He said "yes": no.', '{"a": "b", "a":"c", "a" : 1}')), 1),
    Case(
        "a key twice in a pretty list",
        b'[\n{"question": "a",\n "question": "b", "answer": "c"}, {"question": "a", "answer": "c"}]',
        1,
        errors=[bad_line(2, "[0]", "has the key question twice", "Keep one of the two.")],
    ),
    Case(
        "python's NaN outside the texts",
        lines('{"score": NaN, "messages": ' + json.dumps(GOOD[0]["messages"]) + "}"),
        1,
        unused="score (1 ×)",
    ),
    Case(
        "latin-1 on line 2",
        lines(GOOD[0]) + lines(chat("Wo?", "Köln")).decode().encode("latin-1"),
        1,
        errors=[bad_line(2, None, "is not UTF-8 (byte 0xf6)", "Save the file as UTF-8 and upload it again.")],
    ),
    Case(
        "zero bytes in a line",
        lines(GOOD[0]) + b"\x00\x00\x00\n" + lines(GOOD[1]),
        2,
        errors=[
            bad_line(2, None, "holds zero bytes", "Write the file again: they come from a broken copy or from UTF-16.")
        ],
    ),
    Case(
        "a line above the limit",
        lines(GOOD[0], chat(answer=LONG), GOOD[1]),
        2,
        errors=[
            bad_line(
                2, None, "is longer than 4 MB", "No model reads that much in one example: split it, one example a line."
            )
        ],
    ),
    Case(
        "deep nesting in a line",
        lines(GOOD[0], "[" * 20_000 + "]" * 20_000),
        1,
        errors=[bad_line(2, None, "is not valid JSON (nested too deeply)", FIX)],
    ),
    Case(
        "a number of five thousand digits",
        lines(GOOD[0], '{"messages": NaN, "x": ' + "1" * 5000 + "}"),
        1,
        errors=[bad_line(2, None, "is not valid JSON (a number is too long)", FIX)],
    ),
    one(
        "half a surrogate pair",
        '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "gpt", "content": "x"}]}',
        "messages[0]",
        "holds half of a two-part character (a lone surrogate escape)",
        "Write the file again with whole characters: cut texts between characters.",
    ),
]
