"""The preview counts the tokens that the training will see, and marks in the rendered text what is learned."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_contract.hyperparameters import Hyperparameters
from lora_contract.lengths import Lengths
from lora_trainer.cli import app
from lora_trainer.data import preview as module
from lora_trainer.data.chat import prepare_tokenizer
from lora_trainer.data.preview import preview
from lora_worker.submission.tokenizing import TokenizerMissingError, count_lengths
from tests.unit.trainer.tokenizers import tokenizer_with

pytestmark = pytest.mark.gpu_stack

TALK = [
    {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good evening."},
    {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."},
]  # fmt: skip


def previewed(folder: Path, name: str, *values: Any, **chosen: Any) -> Lengths:
    file = folder / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, values)))
    tokenizer = tokenizer_with(name)
    prepare_tokenizer(tokenizer)
    return preview(file, tokenizer, Hyperparameters.model_validate(chosen))


def texts(found: Lengths) -> list[list[tuple[str, bool]]]:
    return [[(part.text, part.learned) for part in rendered.parts] for rendered in found.rendered]


def test_rendered_text_is_the_templates_with_the_answers_marked(tmp_path: Path) -> None:
    found = previewed(tmp_path, "chatml", *[{"messages": TALK}] * 5)
    assert (found.counted_by, found.sequences, len(found.rendered)) == ("tokenizer", 5, 3)
    (first, *_) = texts(found)
    assert [text for text, learned in first if learned] == ["Good evening.<|im_end|>", "Because.<|im_end|>"]
    assert "".join(text for text, _ in first).startswith("<|im_start|>user\nHello<|im_end|>")
    assert sum(bar.sequences for bar in found.histogram) == 5
    assert (found.longer, found.shortened, found.left_out, found.is_complete) == (0, 0, 0, True)


def test_template_that_shows_one_answer_gives_a_row_for_each(tmp_path: Path) -> None:
    found = previewed(tmp_path, "deepseek_r1_distill", {"messages": TALK})
    assert found.sequences == 2
    assert [sum(learned for _, learned in parts) for parts in texts(found)] == [1, 1]


def test_what_does_not_fit_is_counted_as_the_training_counts_it(tmp_path: Path) -> None:
    long = [*TALK[:2], {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "word " * 200}]
    found = previewed(tmp_path, "chatml", {"messages": TALK}, {"messages": long}, max_length=64)
    assert (found.longer, found.left_out) == (1, 1)
    assert found.longest > 64


def test_pair_that_does_not_fit_is_counted_as_its_method_counts_it(tmp_path: Path) -> None:
    pair = {"prompt": "Hello", "chosen": "word " * 200, "rejected": "What?"}
    history = [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "Yes."}]
    long_prompt = {"prompt": [*history, {"role": "user", "content": "Why?"}], "chosen": "Because.", "rejected": "No."}
    found = previewed(tmp_path, "chatml", pair, long_prompt, method="dpo", max_length=64)
    assert (found.sequences, found.longer, found.shortened, found.left_out) == (4, 3, 1, 1)


def test_only_the_first_examples_of_a_long_file_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EXAMPLES", 4)
    assert not previewed(tmp_path, "chatml", *[{"messages": TALK}] * 5).is_complete
    assert previewed(tmp_path, "chatml", *[{"messages": TALK}] * 4).is_complete


def test_pairs_and_thumbs_show_each_answer(tmp_path: Path) -> None:
    pair = {"prompt": "Hello", "chosen": "Good evening.", "rejected": "What?"}
    thumbs = [
        {"prompt": "Hello", "completion": answer, "label": good} for answer, good in (("Hi.", True), ("No.", False))
    ]
    for method, values, answers, titles in (
        ("dpo", [pair], ["Good evening.", "What?"], ["chosen", "rejected"]),
        ("kto", thumbs, ["Hi.", "No."], ["thumb up", "thumb down"]),
    ):
        found = previewed(tmp_path, "chatml", *values, method=method)
        learned = [text for parts in texts(found) for text, is_learned in parts if is_learned]
        assert learned == [f"{answer}<|im_end|>" for answer in answers]
        assert [rendered.title for rendered in found.rendered] == titles


def test_command_answers_as_the_worker_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker starts this command; here it runs in this process, which has imported transformers already."""
    base = tmp_path / "base"
    tokenizer_with("chatml").save_pretrained(base)
    (base / "config.json").write_text('{"model_type": "llama"}')
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"messages": TALK}))

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[1:3] == ["-m", "lora_trainer.cli"]
        done = CliRunner().invoke(app, [*command[3:], "--volume", str(tmp_path)])
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout.encode(), done.stderr.encode())

    monkeypatch.setattr(subprocess, "run", run)
    found = count_lengths(file, base_model=str(base), method="sft", max_length=64)
    assert (found.counted_by, found.sequences, found.longer) == ("tokenizer", 1, 0)
    with pytest.raises(TokenizerMissingError, match="There is no base model"):
        count_lengths(file, base_model=str(tmp_path / "none"), method="sft", max_length=64)
