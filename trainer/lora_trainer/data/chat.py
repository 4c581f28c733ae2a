"""Turns conversations into tokenised rows with a tokenizer's chat template, so that only answers are learned.

The prompt before each learned answer is exactly what a server renders for the messages before it: with the same
template, the schemas of the tools, and earlier thoughts given back as the template wants them. A row teaches several
answers where the rendering of the whole conversation begins with each of their prompts. Where the template changes
earlier turns as the conversation goes on (it drops thoughts, or moves the schemas), each answer becomes a row of its
own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from lora_contract.renderings import Rendering
from lora_conversations.control_tokens import ControlTokens, Marks, plain_marks, sample_texts
from lora_conversations.errors import LineError
from lora_conversations.examples import ASSISTANT, USER, Example, Message
from lora_conversations.limits import refusal_of
from lora_conversations.preferences import Preference, Sample
from lora_trainer.data import probes
from lora_trainer.data.answers import DIFFERENT, Answers, Piece
from lora_trainer.data.labels import IGNORED, Labeller, Row
from lora_trainer.data.templates import ConversationRefusedError, Spelling, Template, prepare_tokenizer
from lora_trainer.errors import BaseModelUnknownError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "Chat", "Row", "prepare_tokenizer"]


class Chat:
    """Turns conversations into training rows with a tokenizer and its chat template.

    `tokenizer` must have been through `prepare_tokenizer`.

    Raises:
        BaseModelUnknownError: the template renders no conversation at all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._stops = tuple({token.content for token in added if token.special} | {tokenizer.eos_token})
        self._template = Template(tokenizer)
        self._answers = Answers(self._template, self._stops)
        self.takes_system = probes.keeps_system(self._template, self._answers)
        """Whether the template keeps a system prompt in front. If not, it becomes the start of the first user turn."""
        self.takes_tools = self._choose_spelling()
        """Whether the template shows schemas of tools, calls, and results."""
        self.tokens = ControlTokens(tokenizer, _source(tokenizer))
        self.marks = self._find_marks()
        starts = probes.starts_of_prompts(self._template, self._stops)
        self._labeller = Labeller(self.tokens.encode, starts)
        self._hidden_labeller = Labeller(self.tokens.encode_hidden, starts)

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
        in `trained`; empty, each answer counts 1. What follows the last of `trained` is left out. None when the
        template can't show all these answers in one rendering as it shows each of them to a server.

        Raises:
            BaseModelUnknownError: answers can't be rendered for training.
        """
        rows = self.rows(messages, trained, tools=tools, weights=weights)
        return rows[0] if len(rows) == 1 else None

    def rows(
        self,
        messages: Sequence[Message],
        trained: Sequence[int],
        *,
        tools: str | None = None,
        weights: Sequence[float] = (),
    ) -> list[Row]:
        """The conversation as few rows as possible, in order, each with its whole history; arguments as in `row`.

        Raises:
            BaseModelUnknownError: answers can't be rendered for training.
        """
        example = Example(tuple(messages), tuple(trained), None, 0, tools=tools)
        is_hidden = self.tokens.are_in(sample_texts(example))
        if is_hidden:
            example = example._replace(
                messages=tuple(self.tokens.hide_all(example.messages)), tools=tools and self.tokens.hide(tools)
            )
        labeller = self._hidden_labeller if is_hidden else self._labeller
        rows: list[Row] = []
        at = 0
        for group in self._groups(example):
            rows += labeller.rows(group, weights[at : at + len(group)])
            at += len(group)
        return rows

    def continuation(
        self, prompt_messages: Sequence[Message], answer_messages: Sequence[Message], *, tools: str | None = None
    ) -> tuple[list[int], list[int]]:
        """The token ids of a prompt as a server renders it, and those of the answer to it with its stop token.

        `answer_messages` are one answer of the assistant. If there are several messages, all but the last belong to
        the prompt.

        Raises:
            BaseModelUnknownError: answers can't be rendered for training.
        """
        messages = [*prompt_messages, *answer_messages]
        row = self.row(messages, [len(messages) - 1], tools=tools)
        if row is None:
            raise BaseModelUnknownError(*DIFFERENT)
        begin = next(index for index, label in enumerate(row.labels) if label != IGNORED)
        return row.input_ids[:begin], row.input_ids[begin:]

    def refuse(self, sample: Sample) -> LineError | None:
        """The error of an example that the template can't show, or whose texts could be mistaken for its marks."""
        return self._beyond(sample) or self.tokens.refuse(sample) or self._refused_by_template(sample)

    @cached_property
    def rendering(self) -> Rendering:
        """What this template allows. Neither weights nor a dataset are needed to find out.

        Raises:
            BaseModelUnknownError: answers can't be rendered for training.
        """
        talk = [Message(USER, "a"), Message(ASSISTANT, "b"), Message(USER, "c"), Message(ASSISTANT, "d")]
        return Rendering(
            row="answer" if self.row(talk, [1, 3]) is None else "conversation",
            system="in front" if self.takes_system else "first turn",
            opens_thought=self._answers.opens_thought,
            stop=self._stop,
            takes_tools=self.takes_tools,
            several_calls=not self.takes_tools or probes.takes_several_calls(self._answers),
            text_beside_calls=not self.takes_tools or probes.shows_text_beside_calls(self._answers),
            thoughts=probes.find_thoughts(self._template, self._answers),
            marks=self.marks.texts,
        )

    @cached_property
    def _stop(self) -> str:
        ended = self._answers.last_of([Message(USER, "a"), Message(ASSISTANT, "b")]).answer
        return max((stop for stop in self._stops if ended.endswith(stop)), key=len)

    @cached_property
    def _beyond(self) -> Callable[[Sample], LineError | None]:
        return refusal_of(self.rendering)

    def _choose_spelling(self) -> bool:
        """Find out how messages are given to the template. Returns whether it takes tools."""
        spelling = Spelling(folds_system=not self.takes_system, thoughts=probes.takes_thoughts(self._template))
        calls = probes.find_calls_spelling(self._template.spelt(spelling), self._answers)
        self._template = self._template.spelt(calls or spelling)
        self._answers = self._answers.using(self._template)
        return calls is not None

    def _find_marks(self) -> Marks:
        between = probes.between_turns(self._template, takes_system=self.takes_system)
        if not self.takes_tools:
            return plain_marks(between, [], self._tokenizer)
        heading = probes.before_result(self._template, self._stop)
        # With a special token in it, what is plain there marks nothing by itself: `{"content": ` of Mistral.
        between += [] if any(stop in heading for stop in self._stops) else [heading]
        return plain_marks(between, probes.tags_of_tools(self._template), self._tokenizer)

    def _groups(self, example: Example) -> list[list[Piece]]:
        """The learned answers with their prompts; those in a group can be learned in one row.

        For this, each prompt has to begin with the whole text of the piece before it.
        """
        tools = json.loads(example.tools) if example.tools else None
        groups: list[list[Piece]] = []
        for index in example.trained:
            piece = self._answers.last_of(example.messages[: index + 1], tools)
            if groups and piece.prompt.startswith(groups[-1][-1].text):
                groups[-1].append(piece)
            else:
                groups.append([piece])
        return groups

    def _refused_by_template(self, sample: Sample) -> LineError | None:
        """The error of an example with tools that the template can't render, such as for the order of its turns.

        Other examples have an order that every template takes, so the time for a rendering is saved.
        """
        if not sample.has_tools:
            return None
        try:
            for example in _as_examples(sample):
                self._groups(example)
        except ConversationRefusedError as error:
            what = "has turns in an order that the base's chat template refuses"
            return LineError(sample.line, None, what, f"{error.message} Change the order or remove the example.")
        except BaseModelUnknownError:
            what = "has an answer that the base's chat template shows differently once it is there"
            return LineError(sample.line, None, what, "Choose another base model, or remove the example.")
        return None


def _as_examples(sample: Sample) -> list[Example]:
    """What is learned of a sample: of a pair, both answers; of a rated conversation, the last one."""
    if isinstance(sample, Example):
        return [sample]
    talks = [sample.messages, sample.prompt + sample.rejected] if isinstance(sample, Preference) else [sample.messages]
    return [Example(talk, (len(talk) - 1,), None, sample.line, tools=sample.tools) for talk in talks]


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The source of the chat template, or of all where a tokenizer has several."""
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else str(template)
