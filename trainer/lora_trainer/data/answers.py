"""Finds an answer in what a chat template renders: the prompt before it, and the text that the model has to generate.

Few templates mark the answers (`{% generation %}`). What every template can do is render a conversation up to an
answer, as a prompt, and render it with the answer. The answer is what the second rendering has more than the first, up
to the token that stops the generation.

Thoughts need more. Some templates have a place for them (Qwen3), and then the second rendering has the thought. Some
begin it in the prompt and leave it out when they render an answer (DeepSeek-R1), and some know none. There the learned
text is put together as the model generates it: the thought, its end, and the answer as the template renders it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lora_conversations.control_tokens import THOUGHT_MARKS
from lora_conversations.examples import ASSISTANT, USER, Message
from lora_trainer.data.templates import Template
from lora_trainer.errors import BaseModelUnknownError

_BEGINS, _ENDS = THOUGHT_MARKS

_EMPTY_THOUGHT = re.compile(rf"\A\s*{_BEGINS}\s*{_ENDS}\s*")
DIFFERENT = (
    "The base model's chat template renders an answer differently from the prompt before it.",
    "Use a base model whose template is made for chat.",
)
_NO_STOP = (
    "The base model's chat template ends an answer without a stop token, so the model would never learn to stop.",
    "Use a base model whose chat template ends the assistant's turn with a special token.",
)


class Piece(NamedTuple):
    """A prompt, and the text that the model generates after it, with its stop token."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """Both together."""
        return self.prompt + self.answer


class Answers:
    """Renders the answers of conversations with one template. `stops` are the tokens that may end an answer."""

    def __init__(self, template: Template, stops: Sequence[str]) -> None:
        self._template = template
        self._stops = tuple(stops)
        self._after_stop = self._find_after_stop()
        self.opened_thought = self._find_opened_thought()
        """The end of the prompt that the rendering of an answer leaves out, such as “<think>” and a line break."""

    @property
    def opens_thought(self) -> bool:
        """Whether the prompt ends with the beginning of a thought."""
        return self._template.prompt([Message(USER, "a")]).rstrip().endswith(_BEGINS)

    def using(self, template: Template) -> Answers:
        """The same with another spelling of the messages."""
        return Answers(template, self._stops)

    def last_of(self, messages: Sequence[Message], tools: list[Any] | None = None) -> Piece:
        """The last message of a conversation as the model generates it.

        Raises:
            BaseModelUnknownError: answers can't be rendered for training.
        """
        *history, answer = messages
        prompt = self._template.prompt(history, tools)
        takes_thought = self._template.spelling.thoughts
        answered = self._until_stop(self._template.conversation(messages, tools))
        if answered.startswith(prompt) and (
            not answer.thought or (takes_thought and answer.thought.strip() in answered)
        ):
            return Piece(prompt, answered[len(prompt) :])
        if answer.thought and takes_thought:
            without = answer._replace(thought="")
            answered = self._until_stop(self._template.conversation([*history, without], tools))
        return Piece(prompt, self._put_together(prompt, answer.thought, answered))

    def _put_together(self, prompt: str, thought: str, answered: str) -> str:
        """The text to learn where the template does not render the thought. `answered` is without it."""
        before = prompt.removesuffix(self.opened_thought)
        if not answered.startswith(before):
            raise BaseModelUnknownError(*DIFFERENT)
        # Some templates put an empty thought before an answer that has none; it is cut off here.
        reply = _EMPTY_THOUGHT.sub("", answered[len(before) :])
        if self.opened_thought:
            return f"{thought.strip()}\n{_ENDS}\n\n{reply.lstrip()}"
        indent = reply[: len(reply) - len(reply.lstrip())]
        return f"{indent}{_BEGINS}\n{thought.strip()}\n{_ENDS}\n\n{reply.lstrip()}"

    def _until_stop(self, answered: str) -> str:
        """The rendered conversation up to the token that stops the generation, inclusive."""
        ended = answered.removesuffix(self._after_stop) if self._after_stop else answered
        ended = ended.rstrip()
        if not ended.endswith(self._stops):
            raise BaseModelUnknownError(*_NO_STOP)
        return ended

    def _find_after_stop(self) -> str:
        """What the template writes behind the first stop token of a last answer, such as a second one (Phi-3)."""
        probe = "ANSWER-PROBE"
        rendered = self._template.conversation([Message(USER, "a"), Message(ASSISTANT, probe)])
        tail = rendered.rpartition(probe)[2]
        ends = [tail.find(stop) + len(stop) for stop in self._stops if stop in tail]
        return tail[min(ends) :] if ends else ""

    def _find_opened_thought(self) -> str:
        prompt = self._template.prompt([Message(USER, "a")])
        answered = self._template.conversation([Message(USER, "a"), Message(ASSISTANT, "b")])
        before = prompt.rstrip().removesuffix(_BEGINS)
        ends_with_thought = len(before) < len(prompt.rstrip())
        is_left_out = not answered.startswith(prompt) and answered.startswith(before)
        return prompt[len(before) :] if ends_with_thought and is_left_out else ""
