"""What the corpus is built of: the case, examples of every format, and the hints that messages end with."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from typing import Any

from lora_conversations.documents import MAX_VALUE_BYTES

FIX = "Fix the line or remove it."
SHAPES = (
    "Use messages, conversations, turns, current_user_input with target_response, instruction with output, "
    "prompt with completion, question with answer, or prompt with chosen and rejected."
)
ANSWER = "Write the answer or remove the example."
TEXT = "Write the text or remove the example."
ROLE = "Use system, user, assistant or tool."
TURN = "Write one object for each turn."
NEEDS = "Each turn needs role and content."
ONE_LIST = "Put all examples into one list."
LEARNED = "Say whether it shall be learned, or remove the key."
WEIGHT = "1 learns an answer fully, 0 not at all: write a number between, or remove the key."
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
        """The notes that the user gets beside the errors."""
        notes = []
        if self.unwanted:
            examples = "1 example" if self.unwanted == 1 else f"{self.unwanted} examples"
            notes.append(f"Left out: {examples} with weight 0, train false or loss false.")
        if self.unused:
            notes.append(f"Keys that are not used: {self.unused}.")
        if self.skipped:
            pairs = "1 pair" if self.skipped == 1 else f"{self.skipped} pairs"
            notes.append(f"Left out: {pairs} whose target_response is null.")
        repaired = {name: count for name, count in self.repairs.items() if name != "doubled user turns dropped"}
        return notes + [f"Put right: {name} ({count} ×)." for name, count in repaired.items()]


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
    """JSON Lines of values; a text is taken as a line as it is."""
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
    """The number of the first line that contains a text."""
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
    """A case of two lines: a good one, then the bad one."""
    return Case(name, lines(GOOD[0], value), examples=1, errors=[bad_line(2, key, error, hint)])
