"""Finds out what a chat template allows, by rendering short conversations with it. No weights are needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from lora_conversations.examples import ASSISTANT, SYSTEM, TOOL, USER, Message, ToolCall
from lora_trainer.data.answers import Answers
from lora_trainer.data.templates import ConversationRefusedError, Spelling, Template
from lora_trainer.errors import BaseModelUnknownError

Thoughts = Literal["text", "dropped", "last", "kept"]

_SCHEMA, _ARGUMENT, _OTHER_ARGUMENT, _RESULT = "SCHEMA-PROBE", "ARGUMENT-PROBE", "OTHER-ARGUMENT", "RESULT-PROBE"
_ASKED, _SAID, _THOUGHT = "QUESTION-PROBE", "ANSWER-PROBE", "THOUGHT-PROBE"
_TOOL = "probe_tool"
PROBE_TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": _SCHEMA,
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        },
    }
]
"""The schema of one tool, as OpenAI writes it."""
_TAG = re.compile(r"\n?(?:</?[a-z_]+>|\[/?[A-Z_]+\])")
"""What templates put around calls and results where they have no special token for it: `<tool_response>`, `[CALL]`."""


def _calls_of(*texts: str) -> tuple[ToolCall, ...]:
    """Calls of the probe's tool, one for each text."""
    return tuple(ToolCall(_TOOL, f'{{"text": "{text}"}}', f"call_probe_{at}") for at, text in enumerate(texts))


def _calling(*, content: str = "", thought: str = "") -> list[Message]:
    return [
        Message(USER, _ASKED),
        Message(ASSISTANT, content, thought=thought, calls=_calls_of(_ARGUMENT)),
        Message(TOOL, _RESULT, name=_TOOL, call_id="call_probe_0"),
        Message(ASSISTANT, _SAID),
    ]


def keeps_system(template: Template, answers: Answers) -> bool:
    """Whether the system prompt comes first and stays there, however long the conversation gets.

    The template of Mistral v0.3 puts it into the last message, and only if that is the user's. So it is in the prompt,
    and missing from the same conversation with its answer.
    """
    probe = "SYSTEM-PROBE"
    talk = [Message(SYSTEM, probe), Message(USER, _ASKED), Message(ASSISTANT, "a"), Message(USER, "b")]
    talk.append(Message(ASSISTANT, "c"))
    try:
        for answer in (2, 4):
            prompt, answered = template.prompt(talk[:answer]), template.conversation(talk[: answer + 1])
            is_in_front = probe in prompt.partition(_ASKED)[0]
            if not is_in_front or not answered.startswith(prompt.removesuffix(answers.opened_thought)):
                return False
    except ConversationRefusedError:
        return False
    return True


def takes_thoughts(template: Template) -> bool:
    """Whether the template shows an answer's thought where a message has it in a key of its own."""
    with_thoughts = template.spelt(replace(template.spelling, thoughts=True))
    try:
        shown = with_thoughts.conversation([Message(USER, _ASKED), Message(ASSISTANT, _SAID, thought=_THOUGHT)])
    except ConversationRefusedError:
        return False
    return _THOUGHT in shown.partition(_SAID)[0]


def find_thoughts(template: Template, answers: Answers) -> Thoughts:
    """What a prompt shows of earlier thoughts, when they are given to the template as it wants them."""
    if not template.spelling.thoughts:
        return "dropped" if answers.opened_thought else "text"
    earlier = [Message(USER, _ASKED), Message(ASSISTANT, _SAID, thought=_THOUGHT), Message(USER, "more")]
    if _THOUGHT in template.prompt(earlier):
        return "kept"
    try:
        in_chain = template.prompt(_calling(thought=_THOUGHT)[:3], PROBE_TOOLS)
    except ConversationRefusedError:
        return "dropped"
    return "last" if _THOUGHT in in_chain else "dropped"


def find_calls_spelling(template: Template, answers: Answers) -> Spelling | None:
    """How calls have to be given to the template; None where it does not show schemas, calls and results."""
    for spelling in _calls_spellings(template.spelling):
        if _shows_tools(template.spelt(spelling), answers):
            return spelling
    return None


def _calls_spellings(spelling: Spelling) -> Iterator[Spelling]:
    for as_text in (False, True):
        for short in (False, True):
            yield replace(spelling, arguments_as_text=as_text, short_ids=short)


def _shows_tools(template: Template, answers: Answers) -> bool:
    messages = _calling()
    try:
        called = answers.using(template).last_of(messages[:2], PROBE_TOOLS)
        answered = answers.using(template).last_of(messages, PROBE_TOOLS)
    except BaseModelUnknownError:
        return False
    is_shown = _SCHEMA in called.prompt and _ARGUMENT in called.answer and _SAID in answered.answer
    # Arguments as text in a template that writes JSON itself become a JSON text within JSON.
    is_encoded_twice = f'\\"{_ARGUMENT}' in called.answer
    return is_shown and not is_encoded_twice and _ARGUMENT in answered.prompt and _RESULT in answered.prompt


def takes_several_calls(answers: Answers) -> bool:
    """Whether an answer may call several tools at once."""
    both = Message(ASSISTANT, "", calls=_calls_of(_ARGUMENT, _OTHER_ARGUMENT))
    try:
        called = answers.last_of([Message(USER, _ASKED), both], PROBE_TOOLS).answer
    except BaseModelUnknownError:
        return False
    return _ARGUMENT in called and _OTHER_ARGUMENT in called


def shows_text_beside_calls(answers: Answers) -> bool:
    """Whether the text of an answer that also calls a tool is shown."""
    return _SAID in answers.last_of(_calling(content=_SAID)[:2], PROBE_TOOLS).answer


def between_turns(template: Template, *, takes_system: bool) -> list[str]:
    """The texts that the template itself writes: before, between and after the messages of a conversation."""
    roles = [SYSTEM] * takes_system + [USER, ASSISTANT, USER, ASSISTANT]
    probes = [Message(role, f"TEXT-PROBE-{index}-TEXT") for index, role in enumerate(roles)]
    return re.split(r"TEXT-PROBE-\d-TEXT", template.conversation(probes))


def tags_of_tools(template: Template) -> list[str]:
    """What the template puts around calls and their results; the schemas' surroundings are not among it."""
    shown = template.conversation(_calling())
    return _TAG.findall(shown.partition(_ASKED)[2])


def before_result(template: Template, stop: str) -> str:
    """The text that the template writes between the stop token of a call and the tool's result."""
    between = template.prompt(_calling()[:3]).partition(_ARGUMENT)[2].partition(_RESULT)[0]
    return between.partition(stop)[2]


def starts_of_prompts(template: Template, specials: Sequence[str]) -> list[str]:
    """The special tokens that stand in the prompts of this template."""
    prompt = template.prompt([Message(USER, "a"), Message(ASSISTANT, "b"), Message(USER, "c")])
    return [token for token in specials if token in prompt]
