"""What was counted in a usable dataset, in the columns of its row."""

from __future__ import annotations

from typing import Any

from lora_conversations.reader import ERRORS_KEPT
from lora_conversations.survey import Note, Survey

MAX_INT = 2**31 - 1
"""The largest number that a column of type `int` holds."""
_NOTES_KEPT = 5


def counted_columns(survey: Survey) -> dict[str, Any]:
    """Return the columns of `datasets` that a validation fills. A pair is an answer that is trained on."""
    return {
        "total_training_pairs": min(survey.answers, MAX_INT),
        "total_tokens": survey.tokens,
        "avg_turns_per_conversation": round(survey.turns_per_conversation, 2),
        "avg_tokens_per_turn": round(survey.tokens_per_turn, 2),
        "validation_errors": _rows(survey, [note for note in survey.notes if not note.harmless]) or None,
        "sample_data": survey.sample,
    }


def _rows(survey: Survey, notes: list[Note]) -> list[dict[str, Any]]:
    """The rows that the dataset's page lists, at most ten: bad lines, then notes on what is left out or changed."""
    noted = [{"line": note.line, "error": f"Note: {note.text}"} for note in notes[:_NOTES_KEPT]]
    return [*(error.as_row() for error in survey.errors[: ERRORS_KEPT - len(noted)]), *noted]
