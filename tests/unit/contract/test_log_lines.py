"""What is kept of a container's log: what says why it failed, and neither secrets nor text of the dataset."""

from __future__ import annotations

import pytest

from lora_contract.log_lines import (
    MAX_LOG_BYTES,
    MAX_LOG_LINE_CHARACTERS,
    MAX_LOG_LINES,
    keep_lines,
    newest_lines,
    own_line,
)
from lora_contract.protocol import MAX_MESSAGE_BYTES, Result

ROW = "Margarethe wohnt in der Lindenstrasse"
OWN = "2026-11-26 14:00:00,123 lora_trainer.run.execution INFO "


@pytest.mark.parametrize(
    "line",
    [
        OWN + "the execution ends as failed: The training process was killed (SIGKILL).",
        "2026-11-26 14:00:00,123 __main__ ERROR The request's dataset is wrong.",
        "2026-11-26 14:00:00,123 transformers.trainer WARNING at /usr/lib/python3.11/site-packages/transformers/t.py:7",
        "Traceback (most recent call last):",
        '  File "/usr/lib/python3.11/site-packages/torch/nn.py", line 10, in forward',
        '  File "<frozen importlib._bootstrap>", line 241, in _call_with_frames_removed',
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        "ModuleNotFoundError: No module named 'bitsandbytes'",
        "ImportError: Using `bitsandbytes` 4-bit quantization requires bitsandbytes: `pip install -U bitsandbytes`",
        "AttributeError: module 'torch' has no attribute 'compiler'",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "OSError: [Errno 28] No space left on device",
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007f6b5a7fe6c0 (most recent call first):",
        "RuntimeError: DataLoader worker (pid 123) is killed by signal: Killed",
        "Killed",
        "KeyboardInterrupt",
        "/usr/bin/python3: No module named lora_trainer",
    ],
)
def test_lines_that_say_why_are_kept_whole(line: str) -> None:
    assert keep_lines([line]) == [line]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (ROW, []),
        (f"ValueError: could not convert string to float: '{ROW}'", ["ValueError: […]"]),
        (f"pyarrow.lib.ArrowInvalid: JSON parse error: {ROW}", []),
        (f"jinja2.exceptions.TemplateError: {ROW}", ["jinja2.exceptions.TemplateError: […]"]),
        (f"/app/trl/trainer.py:51: UserWarning: Mismatch in: {ROW}", ["/app/trl/trainer.py:51: UserWarning […]"]),
        (f"torch.OutOfMemoryError: CUDA out of memory. {ROW}",
         ["torch.OutOfMemoryError: CUDA out of memory. […]"]),
        (f"2026-11-26 14:00:00,123 transformers.trainer WARNING {ROW}", []),
        (f'  File "{ROW}", line 1, in x', []),
        (f"No such example: {ROW}", []),
        (f"{{\"messages\": [{{\"content\": \"{ROW}\"}}]}}", []),
    ],
)  # fmt: skip
def test_words_of_other_programs_are_left_out(line: str, kept: list[str]) -> None:
    left_out = ["[1 line of other programs left out]"]
    assert keep_lines([line]) == (kept or left_out)
    assert keep_lines(kept or left_out) == (kept or left_out), "the worker filters what the trainer has filtered"


def test_code_below_a_place_is_dropped_and_left_out_lines_are_counted() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "/app/x.py", line 3, in read',
        f'    raise ValueError("{ROW}")',
        "    ~~~~^^^^",
        f"ValueError: {ROW}",
        f"and a second line of it: {ROW}",
        "    an indented third one",
        OWN + "goes on",
    ]
    assert keep_lines(lines) == [
        *lines[:2],
        "ValueError: […]",
        "[2 lines of other programs left out]",
        lines[-1],
    ]


def test_further_lines_of_an_own_message_are_kept_and_those_of_others_not() -> None:
    message = own_line(f"{OWN}memory plan\nweights 5 GB\nactivations 2 GB")
    assert keep_lines(message.splitlines()) == message.splitlines()
    assert keep_lines([ROW, "  ¦ " + ROW]) == ["[2 lines of other programs left out]"]


def test_filtering_again_changes_nothing() -> None:
    once = keep_lines([OWN + "x", ROW, f"ValueError: {ROW}", "Traceback (most recent call last):", ROW, ROW])
    assert keep_lines(once) == once


@pytest.mark.parametrize(
    "secret",
    [
        "rpa_ABCDEFGHIJKLMNOPQRSTUVWX",
        "hf_abcdefghijklmnopqrstuvwxyz",
        "sb_secret_abcdef",
        "https://p.supabase.co/storage/v1/object/sign/lora-datasets/u/d.jsonl?token=abc",
        "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=0123",
        "ghp_abcdefghijklmnop1234",
        "x7Gq2-Lk9_vB4nM8pR1sT6wY3zA5cD0eF7hJ2kL9mN4",
        "a-given-secret",
    ],
)
def test_secrets_of_an_own_line_are_replaced(secret: str) -> None:
    (kept,) = keep_lines([f"{OWN}before {secret} after"], ["a-given-secret"])
    assert kept == f"{OWN}before [secret] after"


def test_secret_across_the_cut_of_a_long_line_does_not_remain_in_part() -> None:
    secret = "sb_secret_" + "q" * 60
    (kept,) = keep_lines([OWN + "y" * (MAX_LOG_LINE_CHARACTERS - len(OWN) - 30) + " " + secret])
    assert "sb_secret" not in kept
    assert len(kept) <= MAX_LOG_LINE_CHARACTERS


def test_hashes_and_ids_stay_readable() -> None:
    line = OWN + "f" * 64 + " 0b9c2f2e-1111-4222-8333-444455556666 lora_trainer.models.loading.quantised_experts_of_x"
    assert keep_lines([line]) == [line]


def test_control_characters_and_escape_sequences_are_removed() -> None:
    (kept,) = keep_lines([f"{OWN}\x1b[31mred\x1b[0m \x07\u202eevil\x00 \ud800end"])
    assert kept == f"{OWN}red evil end"
    kept.encode()


def test_number_and_size_of_lines_are_bounded() -> None:
    assert keep_lines(f"{OWN}{number}" for number in range(1000))[0] == f"{OWN}800"
    wide = newest_lines(["€" * MAX_LOG_LINE_CHARACTERS] * 1000)
    assert 0 < len(wide) < MAX_LOG_LINES
    assert sum(len(line.encode()) + 1 for line in wide) <= MAX_LOG_BYTES


def test_result_takes_any_log_and_none() -> None:
    assert Result.model_validate({"run_id": "r", "status": "completed"}).log == []
    for strange in ({"log": "text"}, {"log": None}, {"log": [1, {}, None]}):
        assert Result.model_validate({"run_id": "r", "status": "completed", **strange}).log == []
    largest = Result(run_id="r", status="failed", log=["\U0001f600\x00" * 5000] * 5000)
    assert len(largest.log) <= MAX_LOG_LINES
    assert len(largest.model_dump_json()) < MAX_MESSAGE_BYTES // 3
