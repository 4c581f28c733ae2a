"""A tokenizer's chat template: it renders messages as a server does, whatever shape it expects calls and roles in."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from lora_conversations.examples import TOOL, Message, ToolCall
from lora_conversations.reader import fold_system
from lora_trainer.errors import BaseModelUnknownError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = (
    "{{ bos_token or '' }}{% if tools %}{{ '### Tools:\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}"
    '{% endfor %}{{ \'Answer a call as <tool_call>{"name": …, "arguments": {…}}</tool_call>.\\n\\n\' }}{% endif %}'
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '### Assistant:\\n' + message['content'] }}{% for call in message['tool_calls'] or [] %}"
    "{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<tool_call>\\n{\"name\": ' + call.function.name | tojson + ', \"arguments\": ' }}"
    "{{ call.function.arguments | tojson + '}\\n</tool_call>' }}{% endfor %}{{ eos_token + '\\n\\n' }}"
    "{% else %}{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For base models without a template. It is saved in the artifact, so that serving uses the same one. Calls look as
those of Hermes and Qwen, which servers can read."""

_ID_CHARACTERS = string.ascii_letters + string.digits
_SHORT_ID = 9
"""Characters of a call's id where a template counts them: Mistral's templates take no other length."""
_MAX_REASON_CHARACTERS = 200


class ConversationRefusedError(BaseModelUnknownError):
    """The template raises an error for this conversation; for others it may raise none."""


@dataclass(frozen=True)
class Spelling:
    """How messages are given to a template."""

    folds_system: bool = False
    """Whether the system prompt is the beginning of the first user turn."""
    arguments_as_text: bool = False
    """Whether a call's arguments are JSON text instead of an object."""
    short_ids: bool = False
    """Whether the ids of calls are nine letters and digits."""
    thoughts: bool = False
    """Whether a message has its thought in a key of its own. Otherwise thoughts are left out."""


class Template:
    """The chat template of a tokenizer, and how messages are spelt for it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spelling: Spelling | None = None) -> None:
        self._tokenizer = tokenizer
        self.spelling = spelling or Spelling()

    def spelt(self, spelling: Spelling) -> Template:
        """The same template with another spelling of the messages."""
        return Template(self._tokenizer, spelling)

    def prompt(self, history: Sequence[Message], tools: list[Any] | None = None) -> str:
        """The prompt that a server gives to the model, so that it answers `history`.

        Raises:
            ConversationRefusedError: the template raises an error.
        """
        return self._render(history, tools, add_generation_prompt=True)

    def conversation(self, messages: Sequence[Message], tools: list[Any] | None = None) -> str:
        """The whole conversation, without the beginning of a further answer.

        Raises:
            ConversationRefusedError: the template raises an error.
        """
        return self._render(messages, tools, add_generation_prompt=False)

    def _render(self, messages: Sequence[Message], tools: list[Any] | None, *, add_generation_prompt: bool) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                self._spell(messages),
                tools=tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateError as error:
            # The sentence comes from the template (`raise_exception`), so it contains no text of the dataset.
            reason = str(error)[:_MAX_REASON_CHARACTERS].rstrip(" .!")
            raise ConversationRefusedError(
                f"The base model's chat template refuses a conversation: {reason}."
            ) from None
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            # What Python raises inside a template that adds a text to an object, or asks for a key that is missing.
            raise ConversationRefusedError(
                f"The base model's chat template can't render a conversation ({type(error).__name__})."
            ) from None
        return str(rendered)

    def _spell(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        shown = fold_system(messages) if self.spelling.folds_system and messages else messages
        if any(message.calls or message.role == TOOL for message in shown):
            shown = _with_ids(shown, short=self.spelling.short_ids)
        return [self._spell_message(message) for message in shown]

    def _spell_message(self, message: Message) -> dict[str, Any]:
        spelt: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thought and self.spelling.thoughts:
            spelt["reasoning_content"] = message.thought
        if message.calls:
            spelt["tool_calls"] = [self._spell_call(call) for call in message.calls]
        if message.role == TOOL:
            spelt |= {"name": message.name, "tool_call_id": message.call_id}
        return spelt

    def _spell_call(self, call: ToolCall) -> dict[str, Any]:
        # From one text for both spellings that a file may have, so that both give the same tokens.
        arguments = call.arguments if self.spelling.arguments_as_text else json.loads(call.arguments)
        function = {"name": call.name, "arguments": arguments}
        return {"id": call.call_id, "type": "function", "function": function}


def _with_ids(messages: Sequence[Message], *, short: bool) -> list[Message]:
    """The messages with an id for each call, and for each result the id and name of the call that it answers.

    A result that names no call answers the earliest one that is still open.
    """
    spelt, open_calls, number = [], dict[str, str](), 0
    for message in messages:
        if message.calls:
            calls = []
            for call in message.calls:
                number += 1
                call_id = _spell_id(call.call_id or f"call_{number}", short=short)
                calls.append(call._replace(call_id=call_id))
                open_calls[call_id] = call.name
            message = message._replace(calls=tuple(calls))
        elif message.role == TOOL:
            call_id = _spell_id(message.call_id or next(iter(open_calls), "call_0"), short=short)
            name = open_calls.pop(call_id, None)
            message = message._replace(call_id=call_id, name=message.name or name)
        spelt.append(message)
    return spelt


def _spell_id(call_id: str, *, short: bool) -> str:
    if not short or (len(call_id) == _SHORT_ID and call_id.isascii() and call_id.isalnum()):
        return call_id
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()[:_SHORT_ID]
    return "".join(_ID_CHARACTERS[byte % len(_ID_CHARACTERS)] for byte in digest)


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
