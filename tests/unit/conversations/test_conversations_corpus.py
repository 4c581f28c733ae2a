"""Every broken or unusual dataset of the corpus gets its sentence and line, however its bytes arrive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lora_conversations.errors import DatasetUnusableError, LineError
from lora_conversations.reader import Example
from lora_conversations.survey import Survey, Surveyor
from tests.corpus import CASES
from tests.corpus.builders import Case
from tests.corpus.readings import READINGS


def in_chunks(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def survey(content: bytes, size: int = 1 << 16) -> tuple[Surveyor, DatasetUnusableError | None]:
    surveyor = Surveyor()
    try:
        for chunk in in_chunks(content, size):
            surveyor.feed(chunk)
        surveyor.close()
    except DatasetUnusableError as error:
        return surveyor, error
    return surveyor, None


def check(result: Survey) -> DatasetUnusableError | None:
    try:
        result.check(max_bad_line_share=1)
    except DatasetUnusableError as error:
        return error
    return None


def test_the_corpus_is_large_and_its_names_are_distinct() -> None:
    names = [case.name for case in (*CASES, *READINGS)]
    assert len(set(names)) == len(names) >= 300


@pytest.mark.parametrize("size", [1 << 16, 977], ids=["whole", "small-chunks"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_each_unusual_dataset_gets_its_sentence_and_line(case: Case, size: int) -> None:
    if size < 1 << 16 and len(case.content) > 1 << 20:
        size = 100_003
    surveyor, refusal = survey(case.content, size)
    result = surveyor.result()
    refusal = refusal or check(result)

    assert (refusal and (refusal.message, refusal.hint)) == case.refused
    assert [error.sentence() for error in result.errors] == case.errors
    assert result.examples == case.examples
    assert (result.skipped, result.unwanted) == (case.skipped, case.unwanted)
    assert [note.text for note in result.notes if not note.harmless] == case.notes
    assert case.repairs.items() <= result.repairs.items()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_no_message_repeats_text_of_the_dataset(case: Case) -> None:
    surveyor, refusal = survey(case.content)
    spoken = " ".join(error.sentence() for error in surveyor.result().errors) + f" {refusal or ''}"
    for text in ("secret", "narrator", "hello", "How?", "Answer", "Köln"):
        assert text not in spoken
    assert isinstance(surveyor.result(), Survey)


def test_rows_for_the_application_have_a_line_an_error_and_a_suggestion() -> None:
    error = LineError(17, "messages[1].role", "is missing", "Use system, user or assistant.")
    assert error.as_row() == {
        "line": 17,
        "error": "messages[1].role is missing.",
        "suggestion": "Use system, user or assistant.",
    }
    assert LineError(3, None, "is not valid JSON").as_row() == {"line": 3, "error": "The line is not valid JSON."}
    assert Example((), (), None, 1).line == 1
