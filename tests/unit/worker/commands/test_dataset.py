"""`dataset check` and `dataset convert` answer without a key, in text, in JSON, and by their exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lora_contract.lengths import Lengths, LengthTally, Part, Rendered
from lora_worker.commands import dataset_views
from lora_worker.submission import checking
from lora_worker.submission.tokenizing import TokenizerMissingError, count_lengths
from tests.commands import check_keys, run_command

TALK = [
    {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good \x1b[31mevening."},
]  # fmt: skip
BASE = "Qwen/Qwen2.5-7B-Instruct"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no address, an empty folder, and no tokenizer."""
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_PUBLISHABLE_KEY", "GPU_CLUSTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def missing(*_: Any, **__: Any) -> Lengths:
        raise TokenizerMissingError("the trainer is not installed here")

    monkeypatch.setattr(checking, "count_lengths", missing)


def write(path: Path, *values: Any) -> str:
    path.write_text("\n".join(map(json.dumps, values)))
    return str(path)


def test_check_counts_estimates_and_shows_what_is_learned(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *[{"messages": TALK, "colour": "red"}] * 5, {})
    done = run_command("dataset", "check", file, "--base", BASE)
    assert done.exit_code == 1, "one of six examples is bad"
    assert "a.jsonl would be refused: " in done.stderr
    good = write(tmp_path / "b.jsonl", *[{"messages": TALK, "colour": "red"}] * 5)
    done = run_command("dataset", "check", good, "--base", BASE)
    assert (done.exit_code, done.stderr) == (0, "")
    for told in (
        "5 examples with 5 learned answers in 1 conversation: openai_messages",
        "colour",
        "Tokens (estimated: the trainer is not installed here).",
        "up to      64",
        "0 sequences longer than max_length (2,048)",
        "user: Hello",
        "assistant: ⟦Good \ufffd[31mevening.⟧",
        "A training: ",
        "$",
    ):
        assert told in done.stdout, told
    assert done.stdout.count("assistant: ") == 3
    assert "\x1b" not in done.stdout


def test_check_answers_with_stable_keys_in_json(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *[{"messages": TALK}] * 30, {"messages": 5})
    done = run_command("dataset", "check", file, "--json")
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["usable"], answer["refusal"], answer["bad"]) == (0, True, None, 1)
    assert answer["lengths"]["counted_by"] == "estimate"
    assert answer["lengths_estimated_because"] == "no base model was named (--base)"
    assert [part["learned"] for part in answer["rendered"][0]["parts"]].count(True) == 1
    check_keys("dataset_check", answer)


def test_lengths_are_the_tokenizers_where_the_trainer_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(file: Path, *, base_model: str, method: str, max_length: int) -> Lengths:
        assert (base_model, method, max_length) == (BASE, "sft", 128)
        tally = LengthTally(max_length)
        for tokens in (10, 100, 200):
            tally.add(tokens)
        parts = [Part(text="<|user|>Hello", learned=False), Part(text="Good evening.<|end|>", learned=True)]
        return tally.result("tokenizer", [Rendered(line=1, parts=parts)], shortened=1, left_out=2, is_complete=False)

    monkeypatch.setattr(checking, "count_lengths", counted)
    file = write(tmp_path / "a.jsonl", {"messages": TALK})
    done = run_command("dataset", "check", file, "--base", BASE, "--max-length", "128")
    for told in (
        "Tokens (counted by the base model's tokenizer). Of the first 3 sequences.",
        "up to     256",
        "1 row shortened, 2 answers left out; the longest has 200 tokens",
        "<|user|>Hello⟦Good evening.<|end|>⟧",
    ):
        assert told in done.stdout, told


def test_named_gpu_counts_also_where_the_endpoint_has_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_WORKER_ENDPOINT_GPU_TYPE", "L4")
    file = write(tmp_path / "a.jsonl", {"messages": TALK})
    assert "on 1 × L4." in run_command("dataset", "check", file).stdout
    assert "on 1 × H100." in run_command("dataset", "check", file, "--gpu", "H100").stdout
    assert run_command("dataset", "check", file, "--gpu", "abacus").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.jsonl"], "can't be read"),
        (["a.jsonl", "--base", "Qwen/Qwen2.5-7B-Instrukt"], "Qwen/Qwen2.5-7B-Instruct may be meant"),
        (["a.jsonl", "--gpu", "abacus"], "is not in the price table"),
        (["a.jsonl", "--method", "telepathy"], "method"),
        (["a.jsonl", "--max-length", "1"], "max_length"),
    ],
)
def test_wrong_argument_of_check_is_one_sentence(tmp_path: Path, arguments: list[str], told: str) -> None:
    write(tmp_path / "a.jsonl", {"messages": TALK})
    done = run_command("dataset", "check", *arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_convert_tells_what_it_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", {"instruction": "Hello", "output": "Hi", "topic": "x"}, {"messages": 5})
    done = run_command("dataset", "convert", source, str(tmp_path / "b.jsonl"))
    assert (done.exit_code, done.stderr) == (0, "")
    assert "1 example of 2 values in " in done.stdout
    assert "Left out: 1 × messages is a number" in done.stdout
    assert "topic" in done.stdout
    again = run_command("dataset", "convert", source, str(tmp_path / "b.jsonl"))
    assert (again.exit_code, "--force" in again.stderr) == (2, True)
    done = run_command("dataset", "convert", source, str(tmp_path / "b.jsonl"), "--force", "--json")
    check_keys("dataset_convert", json.loads(done.stdout))
    assert run_command("dataset", "check", str(tmp_path / "b.jsonl")).exit_code == 0


def test_base_without_tools_is_told_before_anything_is_uploaded(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    file = write(tmp_path / "a.jsonl", {"messages": TALK, "tools": tools})
    done = run_command("dataset", "check", file, "--base", "mistralai/Mistral-7B-Instruct-v0.2")
    assert done.exit_code == 1
    assert "uses tools, which the base's chat template does not show" in done.stderr


def test_colours_mark_what_is_learned_in_a_terminal() -> None:
    console = Console(force_terminal=True, width=80, record=True, file=io.StringIO())
    rendered = [Rendered(line=1, parts=[Part(text="a", learned=False), Part(text="b", learned=True)])]
    dataset_views.print_rendered(rendered, console)
    assert "\x1b[1;32mb" in console.export_text(styles=True)


def test_missing_or_failing_trainer_is_a_reason_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        subprocess.CompletedProcess([], 1, b"", b"warning\nbase: it is not on the hub.\n"),
        subprocess.CompletedProcess([], 0, b"{}", b""),
    ]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answers.pop(0))
    for told in ("base: it is not on the hub", "another version"):
        with pytest.raises(TokenizerMissingError, match=told):
            count_lengths(tmp_path / "a", base_model="base", method="sft", max_length=64)
    monkeypatch.setitem(sys.modules, "lora_trainer", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(TokenizerMissingError, match="not installed here"):
        count_lengths(tmp_path / "a", base_model="base", method="sft", max_length=64)
