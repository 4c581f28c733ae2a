"""Broken and odd datasets, each with what the loader has to say about it.

A case holds the bytes of a file and its expected outcome: the sentence with which the file is refused,
or the sentences of its bad lines and the number of its examples.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from dataclasses import dataclass, field
from typing import Any

from lora_conversations.documents import MAX_VALUE_BYTES

FIX = "Fix the line or remove it."
SHAPES = (
    "Use messages, conversations, turns, current_user_input with target_response, instruction with output, "
    "prompt with completion, or question with answer."
)
ANSWER = "Write the answer or remove the example."
TEXT = "Write the text or remove the example."
ROLE = "Use system, user or assistant."
TURN = "Write one object for each turn."
NEEDS = "Each turn needs role and content."
TOOLS = "Training with tools is not offered yet: remove the examples that call tools, and the list of tools elsewhere."
REASONING = "Training with reasoning is not offered yet: remove it to train the answer alone."
BETTER = "Preferences can't be trained: write the better answer alone, such as prompt with completion."
ONE_LIST = "Put all examples into one list."
LEARNED = "An answer is learned or not, nothing between: say which, or remove the key."
PAIR = "Each example needs a user's turn and the assistant's answer to it."


@dataclass(frozen=True)
class Case:
    """`refused`: message and hint of the refusal. `errors`: sentences of bad lines, which name their lines.

    `unused`: the keys that the note on unused keys names, `unwanted`: examples with weight 0 or the like.
    """

    name: str
    content: bytes
    examples: int = 0
    refused: tuple[str, str] | None = None
    errors: list[str] = field(default_factory=list)
    repairs: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    unwanted: int = 0
    unused: str = ""

    @property
    def notes(self) -> list[str]:
        """What the user is told beside the errors."""
        told = []
        if self.unwanted:
            examples = "1 example" if self.unwanted == 1 else f"{self.unwanted} examples"
            told.append(f"Left out: {examples} with weight 0, train false or loss false.")
        if self.unused:
            told.append(f"Keys that are not used: {self.unused}.")
        if self.skipped:
            pairs = "1 pair" if self.skipped == 1 else f"{self.skipped} pairs"
            told.append(f"Left out: {pairs} whose target_response is null.")
        repaired = {name: count for name, count in self.repairs.items() if name != "doubled user turns dropped"}
        return told + [f"Put right: {name} ({count} ×)." for name, count in repaired.items()]


def chat(question: str = "How?", answer: str = "So.", **more: Any) -> dict[str, Any]:
    """An example in OpenAI's format."""
    return {"messages": [turn("user", question), turn("assistant", answer)], **more}


def turn(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def pair(turn_number: int = 2, conversation: str | None = "c1", **more: Any) -> dict[str, Any]:
    """A BrightRun pair; its history ends with the current input, as in the application's own files."""
    history = [turn("user" if n % 2 else "assistant", f"turn {n}") for n in range(1, turn_number)]
    identity = {} if conversation is None else {"conversation_id": conversation}
    return {
        "id": f"{conversation}-{turn_number}",
        **identity,
        "turn_number": turn_number,
        "system_prompt": "Be kind.",
        "conversation_history": history,
        "current_user_input": history[-1]["content"],
        "target_response": f"turn {turn_number}",
        **more,
    }


def sharegpt(*texts: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(texts)]
    return {"conversations": turns, **more}


def v3_pair(number: int, answer: Any = "Yes.") -> dict[str, Any]:
    return {
        "turn_number": number,
        "user_input": f"Question {number}?",
        "synthesized_output": {"response_to_user": answer},
    }


META = {"_meta": {"file_name": "demo", "total_pairs": 89, "version": "4.0.0"}}


def lines(*values: Any, end: str = "\n") -> bytes:
    """JSON Lines of values; a text stands for itself."""
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return (end.join(texts) + end).encode()


def full_file(*conversations: Any, indent: int | None = None) -> bytes:
    """BrightRun's full JSON."""
    head = {"training_file_metadata": {"total_training_pairs": 999}, "consultant_profile": {"name": "Elena"}}
    return json.dumps({**head, "conversations": list(conversations)}, indent=indent).encode()


def conversation(identity: str, *pairs: Any) -> dict[str, Any]:
    return {"conversation_metadata": {"conversation_id": identity}, "training_pairs": list(pairs)}


def zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.jsonl", content)
    return archive.getvalue()


def line_of(content: bytes, text: str) -> int:
    """The line on which a text first stands."""
    return content[: content.index(text.encode())].count(b"\n") + 1


GOOD = [chat(f"Question {number}?", f"Answer {number}.") for number in range(1, 21)]
SEVENTEENTH = [*GOOD[:16], '{"messages": [{"role": "user" "content": "secret"}]}', *GOOD[17:]]
CUT = lines(*GOOD)[:-20]
PRETTY = json.dumps(GOOD, indent=2).encode()
PRETTY_WRONG_ROLE = json.dumps(
    [*GOOD[:3], {"messages": [turn("user", "Hi"), turn("narrator", "x")]}], indent=2
).encode()
PRETTY_FULL_WRONG = full_file(
    conversation("a", pair(2), pair(4)), conversation("b", pair(2), pair(4, target_response=7)), indent=2
)
LONG = "x" * (MAX_VALUE_BYTES + 10)

FOREIGN_HINT = "Upload the JSON file itself."
AGAIN = "Only a part of it arrived: upload it again."
UTF8 = "Save it as UTF-8 and upload it again."
NOT_JSON = (
    "The dataset is not JSON: none of its first lines begins with { or [.",
    "Upload JSON Lines, with one example a line, or a JSON file.",
)
EMPTY = ("The dataset is empty.", "Upload a file with at least one example.")
NO_PAIR = ("The dataset holds no usable pair of question and answer.", "Add at least one example.")


def bad_line(line: int, key: str | None, error: str, hint: str = "") -> str:
    where = f"Line {line} of the dataset" + (f": {key}" if key else "")
    return f"{where} {error}.{' ' + hint if hint else ''}"


def one(name: str, value: Any, key: str | None, error: str, hint: str = "") -> Case:
    """A good line, then the bad one."""
    return Case(name, lines(GOOD[0], value), examples=1, errors=[bad_line(2, key, error, hint)])


FILES = [
    Case("no bytes", b"", refused=EMPTY),
    Case("only blank lines", b"\n  \r\n\t\n", refused=EMPTY),
    Case("only a byte order mark", b"\xef\xbb\xbf", refused=EMPTY),
    Case("zero bytes only", b"\x00" * 5000, refused=("The dataset consists of zero bytes.", "Upload the file again.")),
    Case("gzip", gzip.compress(lines(*GOOD)), refused=("The dataset is a gzip archive, not JSON.", FOREIGN_HINT)),
    Case(
        "zip",
        zipped(lines(*GOOD)),
        refused=("The dataset is a zip archive or an Office file, not JSON.", FOREIGN_HINT),
    ),
    Case(
        "html error page",
        b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        refused=("The dataset is an HTML or XML page, not JSON.", FOREIGN_HINT),
    ),
    Case("parquet", b"PAR1\x15\x04", refused=("The dataset is a Parquet file, not JSON.", FOREIGN_HINT)),
    Case("pdf", b"%PDF-1.7 ...", refused=("The dataset is a PDF file, not JSON.", FOREIGN_HINT)),
    Case(
        "git lfs pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        refused=("The dataset is a Git LFS pointer without its file, not JSON.", FOREIGN_HINT),
    ),
    Case("csv", b"prompt,completion\nHow?,So.\n", refused=NOT_JSON),
    Case("plain text", b"Once upon a time.\n", refused=NOT_JSON),
    Case("one number", b"42", refused=NOT_JSON),
    Case(
        "utf-16 with a mark",
        lines(*GOOD).decode().encode("utf-16"),
        refused=("The dataset is UTF-16 or UTF-32 text, not UTF-8.", UTF8),
    ),
    Case(
        "utf-16 without a mark",
        lines(*GOOD).decode().encode("utf-16-le"),
        refused=("The dataset is UTF-16 or UTF-32 text, not UTF-8.", UTF8),
    ),
    Case(
        "utf-32",
        lines(*GOOD).decode().encode("utf-32"),
        refused=("The dataset is UTF-16 or UTF-32 text, not UTF-8.", UTF8),
    ),
    Case("half a file of lines", CUT, 19, refused=("The dataset breaks off in the middle of line 20.", AGAIN)),
    Case(
        "half a file inside a character",
        lines(GOOD[0], chat("Wo?", "Köln"))[: lines(GOOD[0], chat("Wo?", "Köln")).index("ö".encode()) + 1],
        1,
        refused=("The dataset breaks off in the middle of line 2.", AGAIN),
    ),
    Case(
        "half a pretty document",
        PRETTY[: PRETTY.index(b"Answer 3.") + 4],
        2,
        refused=(
            f"The dataset breaks off in the middle of line {line_of(PRETTY, 'Answer 3.')}.",
            AGAIN,
        ),
    ),
    Case(
        "half a full file on one line",
        full_file(conversation("a", pair(2)), conversation("b", pair(2)))[:-60],
        1,
        refused=("The dataset breaks off in the middle of line 1.", AGAIN),
    ),
    Case("only the header", lines(META), refused=NO_PAIR),
    Case("an empty list", b"[]", refused=NO_PAIR),
    Case("an empty full file", full_file(), refused=NO_PAIR),
    Case("a conversation without pairs", full_file(conversation("a")), refused=NO_PAIR),
    Case(
        "no pair has an answer",
        lines(META, pair(2, target_response=None), pair(4, target_response=None)),
        skipped=2,
        refused=(
            "No pair of the dataset has an answer: target_response is null in 2 pairs.",
            "Generate the answers first.",
        ),
    ),
]

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

LINES = [
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
        "messages[].audio (1 ×), score (1 ×)",
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
        "a Gemini call",
        {"contents": [{"role": "user", "parts": [{"text": "x"}]}, {"role": "model", "parts": [{"functionCall": {}}]}]},
        "contents[1].parts",
        "has a tool call among its parts",
        TOOLS,
    ),
    one(
        "a preference of two texts",
        {"prompt": "x", "chosen": "y", "rejected": "z"},
        None,
        "is a preference (chosen and rejected)",
        BETTER,
    ),
    one(
        "a preference of two lists",
        {"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []},
        None,
        "is a preference (preferred_output and non_preferred_output)",
        BETTER,
    ),
    one(
        "an answer with a verdict",
        {"prompt": "x", "completion": "y", "label": False},
        "label",
        "marks the answer as good or bad",
        "Preferences can't be trained: keep the good answers alone, without label.",
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
        "has parts that are not text",
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
            "is neither 0 nor 1",
            LEARNED,
        )
        for weight in (0.5, -1, "much", [0])
    ),
    one("a row's weight of 2", {**GOOD[1], "weight": 2}, "weight", "is neither 0 nor 1", LEARNED),
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

CASES = FILES + DOCUMENTS + LINES
