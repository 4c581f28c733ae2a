"""Renders conversations with a chat template and finds the answers in them, so that only answers are learned.

Few templates mark the answers (`{% generation %}`), and TRL brings marked variants of some others. What every
template can do is render a conversation up to an answer, as a prompt, and render it with the answer. The answer is
what the second rendering has more than the first. This needs templates that leave earlier text unchanged when more
turns follow ("prefix preserving"). With a template that changes it, each answer becomes a row of its own.

Some templates end the prompt with the beginning of a thought, which they leave out when they render an answer
(DeepSeek-R1). There the learned text is put together as the model generates it: the prompt, the thought (which may
be empty), the end of the thought, and the answer as the template renders it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from lora_contract.renderings import Rendering
from lora_conversations.control_tokens import ControlTokens, plain_marks
from lora_conversations.errors import LineError
from lora_conversations.examples import ASSISTANT, SYSTEM, USER, Message
from lora_conversations.preferences import Sample
from lora_conversations.reader import fold_system
from lora_trainer.errors import BaseModelUnknownError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is not learned."""

DEFAULT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '### Assistant:\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### System:\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For base models without a template. It is saved in the artifact, so that serving uses the same one."""


_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"
_DIFFERENT = (
    "The base model's chat template renders an answer differently from the prompt before it.",
    "Use a base model whose template is made for chat.",
)


class Row(NamedTuple):
    """One tokenised training row. `labels` is as long as `input_ids`."""

    input_ids: list[int]
    labels: list[int]
    """The id of each token that is learned, `IGNORED` for all others."""
    answers: int
    """How many answers the row teaches."""
    weights: list[float] | None = None
    """How much each token counts in the loss, 0 where it is not learned; None where each learned token counts 1."""


class Span(NamedTuple):
    """The characters of a rendered conversation, from `start` up to but not including `end`, that are learned."""

    start: int
    end: int


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give the tokenizer a pad token and a chat template where it lacks them.

    Returns whether it had no chat template, so that `DEFAULT_TEMPLATE` was put in.

    Raises:
        BaseModelUnknownError: it has no end-of-text token, or can't tell which characters a token covers.
    """
    if not tokenizer.is_fast:
        raise BaseModelUnknownError(
            "The base model's tokenizer can't say which characters a token covers.",
            "Use a base model with a tokenizer.json.",
        )
    if tokenizer.eos_token is None:
        raise BaseModelUnknownError("The base model's tokenizer has no end-of-text token.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is not None:
        return False
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return True


class Chat:
    """Turns conversations into training rows with a tokenizer and its chat template.

    `tokenizer` must have been through `prepare_tokenizer`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(
            {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
            | {tokenizer.eos_token}
        )
        self.takes_system = True
        """Whether the template keeps a system prompt in front. If not, it becomes the start of the first user turn."""
        self._template = self._choose_template()
        self._thought = self._forced_thought()
        """The end of the prompt that the rendering of an answer leaves out, such as “<think>” and a line break."""
        self.takes_system = self._takes_system()
        self.tokens = ControlTokens(tokenizer)
        self.marks = plain_marks(self._between_turns(), tokenizer)

    def row(
        self,
        messages: Sequence[Message],
        trained: Sequence[int],
        *,
        tools: str | None = None,
        weights: Sequence[float] = (),
    ) -> Row | None:
        """The conversation as one row, in which the messages with the indices `trained` are learned.

        `tools` is the JSON list of the tools' schemas that the prompt shows. `weights` has one number for each index
        in `trained`; empty, each answer counts 1. None when the template can't show all these answers in one rendering.

        Raises:
            BaseModelUnknownError: answers can't be rendered for training.
        """
        encode = self.tokens.encode
        if self.tokens.find(messages):
            messages, encode = self.tokens.hide(messages), self.tokens.encode_hidden
        find_spans = self._with_thought if self._thought else self._as_rendered
        text, spans = find_spans(messages, trained, json.loads(tools) if tools else None)
        if not spans:
            return None
        ids, offsets = encode(text)
        return _as_row(ids, offsets, spans, weights)

    def continuation(
        self, prompt_messages: Sequence[Message], answer_messages: Sequence[Message], *, tools: str | None = None
    ) -> tuple[list[int], list[int]]:
        """The token ids of a prompt as a server renders it, and those of the answer to it with its stop token.

        `answer_messages` begins and ends with an answer of the assistant.

        Raises:
            BaseModelUnknownError: answers can't be rendered for training.
        """
        messages = [*prompt_messages, *answer_messages]
        row = self.row(messages, [len(messages) - 1], tools=tools)
        if row is None:
            raise BaseModelUnknownError(*_DIFFERENT)
        begin = next(index for index, label in enumerate(row.labels) if label != IGNORED)
        end = max(index for index, label in enumerate(row.labels) if label != IGNORED) + 1
        return row.input_ids[:begin], row.input_ids[begin:end]

    def refuse(self, example: Sample) -> LineError | None:
        """The error of an example whose texts could be mistaken for the template's marks or for its special tokens."""
        return self.marks.refuse(example) or self.tokens.refuse(example)

    @cached_property
    def rendering(self) -> Rendering:
        """What this template allows. Neither weights nor a dataset are needed to find out.

        Raises:
            BaseModelUnknownError: answers can't be rendered for training.
        """
        talk = [Message(USER, "a"), Message(ASSISTANT, "b"), Message(USER, "c"), Message(ASSISTANT, "d")]
        if (alone := self.row(talk[:2], [1])) is None:
            raise BaseModelUnknownError(*_DIFFERENT)
        # `decode` gives a list for a batch of sequences only.
        ended = str(self._tokenizer.decode([label for label in alone.labels if label != IGNORED])).rstrip()
        return Rendering(
            row="answer" if self.row(talk, [1, 3]) is None else "conversation",
            system="in front" if self.takes_system else "first turn",
            opens_thought=bool(self._thought),
            stop=max((stop for stop in self._stops if ended.endswith(stop)), key=len),
            history_as_served=self._template == self._tokenizer.chat_template,
            marks=self.marks.texts,
        )

    def _with_thought(
        self, messages: Sequence[Message], trained: Sequence[int], tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """The last answer as the model generates it after a prompt that begins a thought.

        Earlier answers are rendered without their thoughts, as a server renders them, so they can't be learned in
        the same row: where `trained` names any but the last message, there is no span.
        """
        *history, answer = messages
        if list(trained) != [len(history)]:
            return "", []
        prompt = self._render(history, tools, prompting=True)
        thought, _, reply = answer.content.rpartition(_THOUGHT_ENDS)
        answered = self._render([*history, answer._replace(content=reply)], tools)
        before_thought = prompt.removesuffix(self._thought)
        if not answered.startswith(before_thought):
            raise BaseModelUnknownError(*_DIFFERENT)
        thought = thought.strip().removeprefix(_THOUGHT_BEGINS).strip()
        # Some templates put an empty thought before an answer that has none; it is cut off here.
        reply_and_stop = answered[len(before_thought) :].rpartition(_THOUGHT_ENDS)[2].lstrip()
        text = f"{prompt}{thought}\n{_THOUGHT_ENDS}\n\n{reply_and_stop}"
        return text, [Span(len(prompt), self._stop_of(text))]

    def _as_rendered(
        self, messages: Sequence[Message], trained: Sequence[int], tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """The rendered conversation and the spans of its answers; no spans if the template changes earlier turns."""
        text, spans = self._render(messages, tools), []
        for index in trained:
            prompt = self._render(messages[:index], tools, prompting=True)
            answered = self._render(messages[: index + 1], tools)
            if not answered.startswith(prompt):
                raise BaseModelUnknownError(*_DIFFERENT)
            if not text.startswith(answered):
                return text, []
            spans.append(Span(len(prompt), self._stop_of(answered)))
        return text, spans

    def _stop_of(self, answered: str) -> int:
        """Where the learned characters end: just after the token that stops the generation."""
        stripped = answered.rstrip()
        if not stripped.endswith(self._stops):
            raise BaseModelUnknownError(
                "The base model's chat template ends an answer without a stop token, so the model would "
                "never learn to stop.",
                "Use a base model whose chat template ends the assistant's turn with a special token.",
            )
        return len(stripped)

    def _render(self, messages: Sequence[Message], tools: list[Any] | None = None, *, prompting: bool = False) -> str:
        shown = messages if self.takes_system else fold_system(messages)
        try:
            rendered = self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in shown],
                tools=tools,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=prompting,
            )
        except jinja2.TemplateError as error:
            # The sentence comes from the template (`raise_exception`), so it contains no text of the dataset.
            raise BaseModelUnknownError(f"The base model's chat template refuses a conversation: {error}.") from None
        return str(rendered)

    def _choose_template(self) -> Any:
        """The tokenizer's own template if it leaves earlier turns unchanged, else TRL's variant if there is one."""
        from trl.chat_template_utils import get_training_chat_template

        self._template = self._tokenizer.chat_template
        if self._keeps_earlier_turns():
            return self._template
        try:
            return get_training_chat_template(self._tokenizer) or self._template
        except ValueError:
            return self._template

    def _keeps_earlier_turns(self) -> bool:
        """Whether a rendering stays the same, up to where it ends, when more turns follow."""
        talk = [Message(USER, "a"), Message(ASSISTANT, "b"), Message(USER, "c"), Message(ASSISTANT, "d")]
        return self._render(talk).startswith(self._render(talk[:2]))

    def _forced_thought(self) -> str:
        """The beginning of a thought at the prompt's end that the rendering of an answer leaves out; "" if none."""
        talk = [Message(USER, "a"), Message(ASSISTANT, "b")]
        prompt, answered = self._render(talk[:1], prompting=True), self._render(talk)
        before = prompt.rstrip().removesuffix(_THOUGHT_BEGINS)
        ends_with_thought = len(before) < len(prompt.rstrip())
        is_left_out = not answered.startswith(prompt) and answered.startswith(before)
        return prompt[len(before) :] if ends_with_thought and is_left_out else ""

    def _between_turns(self) -> list[str]:
        """The texts that the template itself writes: before, between and after the messages of a conversation."""
        roles = [SYSTEM] * self.takes_system + [USER, ASSISTANT, USER, ASSISTANT]
        probes = [Message(role, f"TEXT-PROBE-{index}-TEXT") for index, role in enumerate(roles)]
        return re.split(r"TEXT-PROBE-\d-TEXT", self._render(probes))

    def _takes_system(self) -> bool:
        """Whether the system prompt comes first and stays there, however long the conversation gets.

        The template of Mistral v0.3 puts it into the last message, and only if that is the user's. So it is in the
        prompt, and missing from the same conversation with its answer.
        """
        talk = [Message(SYSTEM, "SYSTEM-PROBE"), Message(USER, "USER-PROBE"), Message(ASSISTANT, "a")]
        talk += [Message(USER, "b"), Message(ASSISTANT, "c")]
        try:
            for answer in (2, 4):
                prompt, answered = self._render(talk[:answer], prompting=True), self._render(talk[: answer + 1])
                is_in_front = "SYSTEM-PROBE" in prompt.partition("USER-PROBE")[0]
                if not is_in_front or not answered.startswith(prompt.removesuffix(self._thought)):
                    return False
        except BaseModelUnknownError:
            return False
        return True


def _as_row(ids: list[int], offsets: list[tuple[int, int]], spans: list[Span], weights: Sequence[float]) -> Row:
    """The row that learns each token which lies in a span, at least in part.

    `offsets` has each token's first character and the one after its last. Tokens and spans are in order. `weights` has
    one number for each span, or none.
    """
    labels = [IGNORED] * len(ids)
    counts = [0.0] * len(ids) if any(weight != 1 for weight in weights) else None
    at = 0
    for index, (start, end) in enumerate(offsets):
        while at < len(spans) and start >= spans[at].end:
            at += 1
        if at == len(spans):
            break
        if end > spans[at].start:
            labels[index] = ids[index]
            if counts is not None:
                counts[index] = weights[at]
    return Row(ids, labels, len(spans), counts)
