"""`make bench-trainer` runs from its own data; what it says of time is printed here, and asserted nowhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.conversations import Size, write_conversations
from benchmarks.trainer import LEAST_GAIN, MOST_OVERHEAD, format_result, measure, misses
from benchmarks.turns import train_in_turns
from lora_trainer.data.rows import load_examples

SMALL = Size(conversations=4, pairs=3, system_words=15, question_words=10, answer_words=30)


def test_the_benchmark_compares_the_same_work_and_counts_its_answers(tmp_path: Path) -> None:
    result = measure(tmp_path, None, steps=3, size=SMALL)
    print(format_result(result))
    overhead, gain = result["overhead"], result["gain"]
    assert overhead["bare_steps"] == overhead["ours_steps"] == 3
    assert overhead["bare_tokens"] > 0
    assert overhead["ours_tokens"] == pytest.approx(overhead["bare_tokens"], rel=0.5)
    # Both hold the same tensors, so this is exact where a time would not be.
    assert overhead["memory_ratio"] == pytest.approx(1, abs=0.1)
    assert (gain["todays_rows"], gain["our_rows"]) == (12, 4), "pairs, and the conversations that they merge into"
    assert gain["our_answer_tokens"] == gain["todays_answer_tokens"] > 0
    assert all(gain[f"{name}_seconds"] > 0 for name in ("todays", "our"))


def test_its_conversations_are_the_same_each_time_and_long_enough(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert write_conversations(first, Size()) == write_conversations(second, Size()) == 48
    assert first.read_bytes() == second.read_bytes()
    examples, found = load_examples(first, 0.05)
    assert (len(examples), found.conversations) == (48, 12)
    # A pair repeats what came before it: that is what merging gains, and at least twice the words is asked for.
    repeated = sum(len(message.content) for example in examples for message in example.messages)
    once = sum(len(message.content) for example in examples[3::4] for message in example.messages)
    assert repeated > LEAST_GAIN * once


def test_each_missed_limit_is_a_sentence() -> None:
    good = {"overhead": {"time_ratio": MOST_OVERHEAD, "memory_ratio": 1.0}, "gain": {"ratio": LEAST_GAIN}}
    assert misses(good) == []
    bad = {"overhead": {"time_ratio": 1.2, "memory_ratio": 1.1}, "gain": {"ratio": 1.9}}
    assert [sentence.split(":")[0] for sentence in misses(bad)] == [
        "time for a token", "peak memory", "answer tokens a second",
    ]  # fmt: skip


class _Failing:
    """A trainer of which one step is expected, and that fails before it."""

    args = SimpleNamespace(max_steps=1, gradient_accumulation_steps=1)

    def get_train_dataloader(self) -> list[int]:
        return [1]

    def add_callback(self, callback: object) -> None: ...

    def train(self) -> None:
        raise MemoryError("no room")


@pytest.mark.timeout(60)
def test_a_training_that_fails_ends_the_benchmark_with_its_error() -> None:
    with pytest.raises(MemoryError, match="no room"):
        train_in_turns({"first": _Failing(), "second": _Failing()})
