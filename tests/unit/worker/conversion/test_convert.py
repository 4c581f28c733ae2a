"""A converted file is read as the original would be; what could not be taken is counted, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from lora_conversations.preferences import Preference, Rating, Sample
from lora_conversations.survey import Surveyor
from lora_worker.conversion.convert import Conversion, convert
from lora_worker.errors import ArgumentError
from tests.unit.worker.conversion.exports import CLAUDE, chatgpt

TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good evening."}]


def read(path: Path) -> list[Sample]:
    surveyor = Surveyor(method=None)
    samples = [*surveyor.feed(path.read_bytes()), *surveyor.close()]
    assert surveyor.result().bad == 0
    assert surveyor.result().unused_keys == ()
    return samples


def converted(folder: Path, name: str, content: bytes | str) -> tuple[Conversion, list[Sample]]:
    source, target = folder / name, folder / "new.jsonl"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = convert(source, target)
    samples = read(target)
    assert len(samples) == done.written
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return done, samples


def spoken(sample: Sample) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in sample.messages]


def reasons(done: Conversion) -> dict[str, int]:
    return {left.reason: left.count for left in done.left_out}


@pytest.mark.parametrize(
    "value",
    [
        {"messages": TALK},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good evening."}]},
        {"instruction": "Hello", "output": "Good evening."},
        {"prompt": "Hello", "completion": "Good evening."},
        TALK,
    ],
)
@pytest.mark.parametrize("wrap", [lambda value: json.dumps(value), lambda value: json.dumps([value], indent=1)])
def test_formats_of_datasets_become_messages(tmp_path: Path, value: Any, wrap: Any) -> None:
    done, samples = converted(tmp_path, "old.json", wrap(value))
    assert [spoken(sample) for sample in samples] == [[("user", "Hello"), ("assistant", "Good evening.")]]
    assert (done.source, done.left_out) == ("json", [])


def test_pairs_thumbs_tools_thoughts_and_weights_come_through(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    lines = [
        {"prompt": "Hello", "chosen": "Good evening.", "rejected": "What?", "conversation_id": "p"},
        {"messages": TALK, "label": False},
        {"messages": [TALK[0], {"role": "assistant", "content": None, "tool_calls": [call]},
                      {"role": "tool", "tool_call_id": "c1", "content": "blue"},
                      {"role": "assistant", "content": "Blue.", "reasoning_content": "It is day.", "weight": 0.5}],
         "tools": tools},
        {"messages": [TALK[0], {**TALK[1], "weight": 0}, {"role": "user", "content": "More"},
                      {"role": "assistant", "content": "Yes."}]},
    ]  # fmt: skip
    source = tmp_path / "old.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    before = read(source)
    done, after = converted(tmp_path, "old.jsonl", source.read_bytes())
    assert [type(sample) for sample in after[:2]] == [Preference, Rating]
    assert after == before
    assert done.written == 4


def test_table_rows_are_read_by_their_columns(tmp_path: Path) -> None:
    table = 'Question;Answer;id\n"Hello; you";Good evening.;7\n;;\nWhy?;;8\na;b;c;d\n'
    done, samples = converted(tmp_path, "old.csv", "\ufeff" + table)
    assert [spoken(sample) for sample in samples] == [[("user", "Hello; you"), ("assistant", "Good evening.")]]
    assert sum(reasons(done).values()) == 2
    assert reasons(done)["a row with more cells than the header has"] == 1


def test_table_cells_may_hold_json_and_thumbs(tmp_path: Path) -> None:
    cell = json.dumps(TALK).replace('"', '""')
    done, samples = converted(tmp_path, "old.csv", f'messages,label\n"{cell}",TRUE\n"{cell}",false\n')
    assert [sample.good for sample in samples if isinstance(sample, Rating)] == [True, False]
    assert done.source == "csv"


def test_text_that_begins_like_json_stays_text(tmp_path: Path) -> None:
    _, samples = converted(tmp_path, "old.tsv", "question\tanswer\nHello\t[laughs] Hi\n")
    assert spoken(samples[0])[-1] == ("assistant", "[laughs] Hi")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"question,answer\nHello,\xff\n", "is not UTF-8"),
        (b"question,question\na,b\n", "a column twice"),
        (b"\n", "names no columns"),
        (b'question,answer\n"a,b\n', "is no CSV"),
        (b"question,answer\n", "nothing of old.csv can be converted"),
        (b"colour,size\nred,3\n", "nothing of old.csv can be converted"),
    ],
)
def test_unreadable_table_is_one_sentence_and_no_file(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "old.csv").write_bytes(content)
    with pytest.raises(ArgumentError, match=told):
        convert(tmp_path / "old.csv", tmp_path / "new.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]


def test_parquet_rows_are_read_and_bytes_are_named(tmp_path: Path) -> None:
    rows = [{"messages": TALK, "image": b"\x89PNG"}, {"messages": None, "image": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "old")
    done, samples = converted(tmp_path, "old", (tmp_path / "old").read_bytes())
    assert spoken(samples[0]) == [("user", "Hello"), ("assistant", "Good evening.")]
    assert (done.source, done.read, reasons(done)["a cell that is bytes"]) == ("parquet", 2, 1)


def test_broken_parquet_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"PAR1" + b"secret text" * 9)
    with pytest.raises(ArgumentError, match="no Parquet that can be read") as caught:
        convert(tmp_path / "old", tmp_path / "new.jsonl")
    assert "secret" not in str(caught.value)


def test_chatgpt_tree_is_read_along_its_current_branch(tmp_path: Path) -> None:
    done, samples = converted(tmp_path, "conversations.json", json.dumps([chatgpt()]))
    assert spoken(samples[0]) == [
        ("user", "Hello, again"), ("assistant", "Good evening."), ("user", "Thanks"), ("assistant", "Any time."),
    ]  # fmt: skip
    assert samples[0].conversation_id == "tree"
    counts = reasons(done)
    assert counts["a message of a branch that was replaced (edited, or answered anew)"] == 2
    assert counts["a message that the chat did not show"] == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"recipient": "python"}, "uses a tool"),
        ({"content": {"content_type": "code", "text": "1 + 1"}}, "uses a tool"),
        ({"content": {"content_type": "multimodal_text", "parts": [{"asset_pointer": "x"}]}}, "an image"),
        ({"author": {"role": "critic"}}, "a kind that is not known"),
    ],
)
def test_chat_that_cannot_be_taken_is_counted_with_its_reason(tmp_path: Path, change: Any, told: str) -> None:
    broken = chatgpt()
    broken["mapping"]["d"]["message"] |= change
    done, samples = converted(tmp_path, "conversations.json", json.dumps([broken, chatgpt()]))
    assert len(samples) == 1
    assert [count for reason, count in reasons(done).items() if told in reason] == [1]


def test_tree_that_goes_in_a_circle_ends(tmp_path: Path) -> None:
    broken = chatgpt()
    broken["mapping"]["root"]["parent"] = "d"
    done, _ = converted(tmp_path, "conversations.json", json.dumps([broken, chatgpt()]))
    assert any("tree is broken" in reason for reason in reasons(done))


def test_claude_export_is_read(tmp_path: Path) -> None:
    done, samples = converted(tmp_path, "conversations.json", json.dumps([CLAUDE]))
    assert spoken(samples[0]) == [("user", "Hello"), ("assistant", "Good evening.")]
    assert reasons(done) == {"a thought, which the export may hold only in part": 1}


@pytest.mark.parametrize("text", [json.dumps(TALK), "\n".join(map(json.dumps, TALK))])
def test_plain_list_of_messages_is_one_conversation(tmp_path: Path, text: str) -> None:
    _, samples = converted(tmp_path, "chat.json", text)
    assert [spoken(sample) for sample in samples] == [[("user", "Hello"), ("assistant", "Good evening.")]]


def test_no_reason_holds_a_text_of_the_file(tmp_path: Path) -> None:
    lines = [{"messages": TALK}, {"messages": "SECRET"}, {"SECRET KEY": 1}, ["SECRET"], 5]
    done, _ = converted(tmp_path, "old.jsonl", "\n".join(map(json.dumps, lines)) + "\n{SECRET\n")
    assert "SECRET" not in json.dumps([done.notes, reasons(done)])
    assert sum(reasons(done).values()) == 5


def test_reasons_are_bounded(tmp_path: Path) -> None:
    lines = [{"messages": TALK}, *({"messages": [{"role": "user" * n, "content": n}]} for n in range(1, 2000))]
    done, _ = converted(tmp_path, "old.jsonl", "\n".join(map(json.dumps, lines)))
    assert len(done.left_out) <= 31
    assert sum(reasons(done).values()) == 1999


def test_file_that_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    source, target = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    source.write_text(json.dumps({"messages": TALK}))
    target.write_text("precious")
    with pytest.raises(ArgumentError, match="--force"):
        convert(source, target)
    with pytest.raises(ArgumentError, match="the file itself"):
        convert(source, source, force=True)
    assert target.read_text() == "precious"
    assert convert(source, target, force=True).written == 1
    assert target.read_text() != "precious"
    assert target.stat().st_mode & 0o444


def test_conversion_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    source, target = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    source.write_text(json.dumps({"messages": TALK}) + '\n{"messages": [')
    target.write_text("precious")
    with pytest.raises(ArgumentError, match="breaks off"):
        convert(source, target, force=True)
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.jsonl", "old.jsonl"]


def test_target_in_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text(json.dumps({"messages": TALK}))
    with pytest.raises(ArgumentError, match="can't be written"):
        convert(tmp_path / "old.jsonl", tmp_path / "missing" / "new.jsonl")


def test_first_pair_without_an_answer_is_named_by_its_line(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    rows = ({"current_user_input": "x", "target_response": answer} for answer in ("y", None))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (left,) = convert(source, tmp_path / "b.jsonl").left_out
    assert (left.count, left.first, "target_response is null" in left.reason) == (1, 2, True)
