"""What a base's chat template can't show is refused without a tokenizer, so before a launch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_contract.renderings import RENDERINGS
from lora_conversations.examples import Example, Message, ToolCall
from lora_conversations.limits import refusal_of
from lora_conversations.preferences import Preference, Rating, Sample

ASKED = Message("user", "Weather?")
CALL = ToolCall("look", "{}", "1")
CALLING = Message("assistant", "", calls=(CALL,))
BOTH = CALLING._replace(calls=(CALL, CALL._replace(call_id="2")))
BESIDE = CALLING._replace(content="I look.")
QWEN = RENDERINGS["Qwen/Qwen2.5-7B-Instruct"]
LLAMA_3_1 = replace(QWEN, several_calls=False, text_beside_calls=False, marks=())
LLAMA_3 = RENDERINGS["meta-llama/Meta-Llama-3-8B-Instruct"]


def example(*messages: Message, tools: str | None = "[]") -> Example:
    return Example((ASKED, *messages), (len(messages),), None, 3, tools=tools)


@pytest.mark.parametrize(
    ("rendering", "sample", "expected"),
    [
        (LLAMA_3, example(CALLING), "uses tools"),
        (LLAMA_3, example(Message("assistant", "No."), tools="[]"), "uses tools"),
        (LLAMA_3, example(Message("assistant", "No."), tools=None), None),
        (LLAMA_3_1, example(CALLING), None),
        (LLAMA_3_1, example(BOTH), "calls several tools"),
        (LLAMA_3_1, example(BESIDE), "a text beside a call"),
        (QWEN, example(BOTH), None),
        (QWEN, example(BESIDE), None),
        (QWEN, example(Message("tool", "\n</tool_response>")), "marks a turn"),
        (QWEN, example(Message("assistant", "No.", thought="so </think> so")), "within a thought"),
        (LLAMA_3_1, Preference((ASKED,), (CALLING,), (BOTH,), "[]", None, 3), "calls several tools"),
        (LLAMA_3, Rating((ASKED, CALLING), True, None, None, 3), "uses tools"),
        (None, example(BOTH), None),
        (None, example(Message("assistant", "No.", thought="<think>")), "within a thought"),
    ],
)
def test_what_a_template_cannot_show_is_refused_and_all_else_is_not(rendering, sample: Sample, expected) -> None:
    error = refusal_of(rendering)(sample)
    if expected is None:
        assert error is None
        return
    assert error is not None
    assert error.sentence().startswith("Line 3 of the dataset ")
    assert expected in error.sentence()
    assert error.suggestion
