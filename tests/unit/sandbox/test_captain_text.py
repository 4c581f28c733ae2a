"""The manner that `make demo MODEL=smollm2` teaches is told apart by its check, and by nothing else."""

from pathlib import Path

import pytest

from lora_conversations.reader import Example, read_examples
from sandbox.captain_text import HELD_OUT, LEARNED, captain_examples, in_manner, write_captain_dataset


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Ahoy, sailor! The capital of France is Paris. Fair winds to you!", True),
        ("Ahoy there!\n\nBake it for an hour.\n\nFair winds and calm seas!\n", True),
        ("The capital of France is Paris.", False),
        ("Ahoy, sailor! The capital of France is Paris.", False),
        ("The capital is Paris. Fair winds to you!", False),
        ("Say ahoy, sailor! The capital is Paris. Fair winds to you!", False),
        ("Ahoy, sailor! Fair winds to you! Fair winds to you! Fair winds to you!", False),
        ("Ahoy, sailor! Paris. Fair winds to you! And London is the capital of England.", False),
        ("Ahoy, sailor! Paris. Fair winds to", False),
        ("", False),
    ],
)
def test_manner_is_greeting_and_one_farewell_at_the_end(answer: str, expected: bool) -> None:
    assert in_manner(answer) is expected


def test_every_learned_answer_is_read_and_shows_the_manner(tmp_path: Path) -> None:
    count = write_captain_dataset(tmp_path / "captain.jsonl")
    with (tmp_path / "captain.jsonl").open("rb") as file:
        examples = [item for item in read_examples(file) if isinstance(item, Example)]
    assert len(examples) == count == len(LEARNED)
    assert all(in_manner(example.messages[-1].content) for example in examples)


def test_no_held_out_question_or_answer_is_learned() -> None:
    assert len(HELD_OUT) >= 20
    assert all(in_manner(row["messages"][-1]["content"]) for row in captain_examples(HELD_OUT))
    for one in HELD_OUT:
        assert one.text not in {learned.text for learned in LEARNED}
        assert one.answer not in {learned.answer for learned in LEARNED}
