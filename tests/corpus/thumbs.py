"""Files with edited answers and thumbs, each read for the methods that they fit, and for others."""

from __future__ import annotations

from typing import Any

from tests.corpus.builders import chat, pair, turn
from tests.corpus.reading import Reading, learns, refuses, unused
from tests.corpus.verdicts import ASK, BETTER_ONLY, GOOD, HOLDS_PAIR, NO, PAIR, SAME, YES, edited, trl

NO_THUMB = "Rows left out: nobody pressed a thumb (1 ×)."
EDITED = "Answers with a thumb that were edited later: the one that was shown is learned, not the edited one (1 ×)."

EDITS: list[Reading] = [
    learns(
        "verdicts that count for nothing",
        [
            trl([{**YES, "rating": "up", "original_content": "v"}], [NO], prompt="x", label=True),
            {"messages": [ASK, {**YES, "original_content": "v", "weight": 0}, ASK, {**NO, "edited_content": "y"}]},
        ],
        PAIR,
        "user: x | answer: y | user: x + answer: y - answer: z",
        notes=(unused("label", "chosen[].rating", "chosen[].original_content", "messages[].original_content"),),
        method="dpo",
    ),
    learns(
        "an original beside a pair's answer",
        pair(2, target_response="y", original_response="z", system_prompt="", current_user_input="turn 1"),
        "user: turn 1 + answer: y - answer: z",
        method="dpo",
    ),
    learns("an original beside a question's answer", edited(answer="y", original_answer="z"), PAIR, method="dpo"),
    learns("an edit beside an answer", edited(answer="z", edited_answer="y"), PAIR, method="dpo"),
    learns("an original and an edit", edited(original_answer="z", edited_answer="y"), PAIR, method="dpo"),
    learns(
        "an original, an edit and the answer",
        edited(answer="y", original_answer="z", edited_answer="y"),
        PAIR,
        method="dpo",
    ),
    learns("an edit in a message", {"messages": [ASK, {**NO, "edited_content": "y"}]}, PAIR, method="dpo"),
    learns("a rejected response beside messages", {**chat("x", "y"), "rejected_response": "z"}, PAIR, method="dpo"),
    learns(
        "edits in two messages",
        {"messages": [ASK, {**NO, "edited_content": "y"}, turn("user", "w"), {**YES, "original_content": "v"}]},
        PAIR,
        "user: x | answer: y | user: w + answer: y - answer: v",
        method="dpo",
    ),
    learns(
        "an answer that nobody edited",
        [edited(answer="y", original_answer=None), edited(answer="y", edited_answer="z")],
        "user: x + answer: z - answer: y",
        notes=(SAME,),
        method="dpo",
    ),
    learns(
        "an edit that changed nothing",
        [edited(answer="y", original_answer="y "), edited(answer="y", edited_answer="z")],
        "user: x + answer: z - answer: y",
        notes=(SAME,),
        method="dpo",
    ),
    learns(
        "an original for sft",
        edited(answer="y", original_answer="z"),
        GOOD,
        notes=(BETTER_ONLY, unused("original_answer")),
    ),
    learns("an edit for sft", edited(answer="z", edited_answer="y"), GOOD, notes=(BETTER_ONLY,)),
    learns("an edit without a method", edited(answer="z", edited_answer="y"), PAIR, notes=(HOLDS_PAIR,), method=None),
    refuses(
        "an edit for kto",
        edited(answer="z", edited_answer="y"),
        None,
        "has no thumb on an answer",
        "Write label true or false, or rating up or down, or train it with method dpo.",
        method="kto",
    ),
    refuses(
        "an answer that is neither version",
        edited(answer="w", original_answer="z", edited_answer="y"),
        "answer",
        "is neither the original nor the edited answer beside it",
        "Remove one of the three.",
        method="dpo",
    ),
    refuses(
        "two different originals",
        edited(answer="y", original_answer="z", original_response="w"),
        None,
        "has different answers in original_answer and original_response",
        "Keep one of them.",
        method="dpo",
    ),
    refuses(
        "an original that is a number",
        edited(answer="y", original_answer=3),
        "original_answer",
        "is a number, not a text",
        "Write the text or remove the example.",
        method="dpo",
    ),
    refuses(
        "edits of a row and of its answer",
        {"messages": [ASK, {**YES, "original_content": "z"}], "original_answer": "w"},
        "messages[1]",
        "has other versions, and so has its row",
        "Keep those of one place.",
        method="dpo",
    ),
    refuses(
        "more edits than may be",
        {"messages": [item for n in range(201) for item in (ASK, {**YES, "original_content": "z"})]},
        None,
        "has more than 200 answers with a thumb or an edit",
        "Split the conversation into several examples.",
        method="dpo",
    ),
]

UP, DOWN = "user: x | answer: y up", "user: x | answer: y down"


def thumbs(name: str, up: Any, down: Any, key: str = "rating") -> Reading:
    """Both thumbs of one spelling, on a question with its answer."""
    rows = [{"question": "x", "answer": "y", key: value} for value in (up, down)]
    return learns(name, rows, UP, DOWN, method="kto")


THUMBS: list[Reading] = [
    learns(
        "labels",
        [{"prompt": "x", "completion": "y", "label": value} for value in (True, False)],
        UP,
        DOWN,
        method="kto",
    ),
    learns(
        "labels beside turns",
        [{"prompt": [ASK], "completion": [YES], "label": value} for value in (True, False)],
        UP,
        DOWN,
        method="kto",
    ),
    thumbs("labels that are 1 and 0", 1, 0, "label"),
    thumbs("ratings up and down", "up", "down"),
    thumbs("ratings of plus and minus one", 1, -1),
    thumbs("ratings as signed texts", "+1", "-1"),
    thumbs("thumbs in words", "thumbs_up", "Thumbs down", "thumbs"),
    thumbs("thumbs as pictures", "👍", "👎", "reaction"),
    thumbs("likes", True, False, "liked"),
    thumbs("votes", "upvote", "downvote", "vote"),
    thumbs("a thumb in words", "good", "bad", "thumb"),
    learns(
        "feedback with a comment",
        [{"question": "x", "answer": "y", "feedback": {"rating": value, "comment": "secret"}} for value in (1, -1)],
        UP,
        DOWN,
        notes=(unused("feedback.comment (2 ×)"),),
        method="kto",
    ),
    learns(
        "thumbs on messages",
        {"messages": [ASK, {**YES, "rating": "down"}, ASK, NO, ASK, {**YES, "rating": "up"}]},
        DOWN,
        "user: x | answer: y | user: x | answer: z | user: x | answer: y up",
        method="kto",
    ),
    learns(
        "a thumb beside messages",
        [{**chat("x", "y"), "rating": value} for value in ("up", "down")],
        UP,
        DOWN,
        method="kto",
    ),
    learns(
        "thumbs on the application's pairs",
        [pair(2, target_response="y", system_prompt="", rating=value) for value in ("up", "down")],
        "user: turn 1 | answer: y up",
        "user: turn 1 | answer: y down",
        method="kto",
    ),
    learns(
        "a thumb that nobody pressed",
        [{"question": "x", "answer": "y", "rating": value} for value in (None, "up", "down")],
        UP,
        DOWN,
        notes=(NO_THUMB,),
        method="kto",
    ),
    learns(
        "a thumb on an edited answer",
        [edited(answer="z", original_answer="y", rating="down"), edited(answer="y", rating="up")],
        DOWN,
        UP,
        notes=(EDITED,),
        method="kto",
    ),
    learns(
        "thumbs without a method",
        [{"prompt": "x", "completion": "y", "label": value} for value in (True, False)],
        UP,
        DOWN,
        notes=("Holds 2 answers with a thumb (1 up): method kto learns from them.",),
        method=None,
    ),
    learns(
        "thumbs that belong to no learned answer",
        [
            pair(2, system_prompt="", rating=value, conversation_history=[turn("user", "w"), {**YES, "rating": "up"}])
            for value in ("up", "down")
        ],
        "user: w | answer: y | user: turn 1 | answer: turn 2 up",
        "user: w | answer: y | user: turn 1 | answer: turn 2 down",
        notes=(unused("conversation_history[].rating (2 ×)"),),
        method="kto",
    ),
    learns(
        "a label that may be a class, for sft",
        {"question": "x", "answer": "y", "label": "positive"},
        GOOD,
        notes=(unused("label"),),
    ),
    thumbs("labels in words", "positive", "negative", "label"),
    learns(
        "numbers that may be anything, for sft",
        {"question": "x", "answer": "y", "rating": 4, "label": 1},
        GOOD,
        notes=(unused("rating", "label"),),
    ),
    learns(
        "numbers that may be anything, without a method",
        {"question": "x", "answer": "y", "rating": 4},
        GOOD,
        method=None,
        notes=(unused("rating"),),
    ),
    refuses(
        "a label for sft",
        {"prompt": "x", "completion": "y", "label": False},
        "label",
        "is a thumb, not an answer to learn",
        "Train it with method kto, or remove the key.",
    ),
    refuses(
        "a thumb on a message for sft",
        {"messages": [ASK, {**YES, "rating": "up"}]},
        "messages[1].rating",
        "is a thumb, not an answer to learn",
        "Train it with method kto, or remove the key.",
    ),
    refuses(
        "an answer for kto",
        chat(),
        None,
        "has no thumb on an answer",
        "Write label true or false, or rating up or down, or train it with method sft.",
        method="kto",
    ),
    *(
        refuses(
            f"a rating of {value}",
            {"question": "x", "answer": "y", "rating": value},
            "rating",
            f"is {what} that is neither a thumb up nor down",
            "Write true or false, up or down, or 1 or -1.",
            method="kto",
        )
        for value, what in (
            (5, "a number"),
            (0, "a number"),
            ("so so", "a text of 5 characters"),
            ([1], "a list of 1 element"),
        )
    ),
    refuses(
        "two thumbs that differ",
        {"question": "x", "answer": "y", "rating": "up", "liked": False},
        None,
        "has a thumb up and a thumb down, in rating and liked",
        "Keep one.",
        method="kto",
    ),
    refuses(
        "another thumb than the row's",
        {"messages": [ASK, {**YES, "rating": "up"}], "rating": "down"},
        "messages[1]",
        "has another thumb than its row",
        "Keep one of them.",
        method="kto",
    ),
]
