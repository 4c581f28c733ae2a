"""Turns the conversations of chat exports into lists of messages: ChatGPT's tree, Claude's list.

ChatGPT's `conversations.json` holds each conversation as a tree, `mapping`: an edited question or a new answer is a
branch, and `current_node` is the end of the branch that was last shown. The path from there to the root is the
conversation. The form is not documented by OpenAI; what is read here is what exports of 2023 to 2026 have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

Messages: TypeAlias = list[dict[str, Any]]
Value: TypeAlias = dict[str, Any]

_SHOWN_TYPES = frozenset({"text", "multimodal_text"})
_SILENT_TYPES = {
    "thoughts": "a summary of a thought, which is not what the model has thought",
    "reasoning_recap": "a summary of a thought, which is not what the model has thought",
    "user_editable_context": "custom instructions, which the export repeats in each conversation",
    "model_editable_context": "the assistant's memory, which the export repeats in each conversation",
}
"""Content of ChatGPT's messages that is left out of a conversation, with the reason."""
_SENDERS = {"human": "user", "assistant": "assistant"}


class UnusableChatError(ValueError):
    """A conversation of an export can't be trained on; the text is the reason, without any text of the conversation."""


def is_chatgpt(value: object) -> bool:
    """Tell whether a value is a conversation of ChatGPT's export."""
    return isinstance(value, dict) and isinstance(value.get("mapping"), dict) and "current_node" in value


def is_claude(value: object) -> bool:
    """Tell whether a value is a conversation of Claude's export."""
    return isinstance(value, dict) and isinstance(value.get("chat_messages"), list)


def read_chatgpt(value: Value, note: Callable[[str, int], None]) -> Value:
    """Return the conversation that was last shown, as an object with `messages`; `note` counts what is left out of it.

    Raises:
        UnusableChatError: it uses a tool, an image or a file, or its tree is broken.
    """
    path = _path(value["mapping"], value["current_node"])
    replaced = sum(1 for node in value["mapping"].values() if _message(node)) - sum(
        1 for node in path if _message(node)
    )
    if replaced > 0:
        note("a message of a branch that was replaced (edited, or answered anew)", replaced)
    messages: Messages = []
    for node in path:
        message = _message(node)
        if message is not None:
            messages += _read_message(message, note)
    identity = value.get("conversation_id") or value.get("id")
    return _conversation(messages, identity)


def _path(mapping: dict[str, Any], leaf: object) -> list[Any]:
    """The nodes from the root to the leaf.

    Raises:
        UnusableChatError: a node is missing, or its parents go round in a circle.
    """
    nodes: list[Any] = []
    at = leaf
    while at is not None:
        node = mapping.get(at) if isinstance(at, str) else None
        if not isinstance(node, dict) or len(nodes) >= len(mapping):
            raise UnusableChatError("its tree is broken: a message names a parent that is not in it")
        nodes.append(node)
        at = node.get("parent")
    return nodes[::-1]


def _message(node: object) -> Value | None:
    message = node.get("message") if isinstance(node, dict) else None
    return message if isinstance(message, dict) else None


def _read_message(message: Value, note: Callable[[str, int], None]) -> Iterator[dict[str, Any]]:
    author, content, metadata = (_object(message.get(key)) for key in ("author", "content", "metadata"))
    role, kind = author.get("role"), content.get("content_type")
    if kind in _SILENT_TYPES:
        note(_SILENT_TYPES[kind], 1)
        return
    if role == "tool" or (
        role == "assistant" and (kind not in _SHOWN_TYPES or message.get("recipient", "all") != "all")
    ):
        raise UnusableChatError(
            "it uses a tool of the chat (code, search, images), whose calls the export does not hold"
        )
    if role not in {"system", "user", "assistant"} or kind not in _SHOWN_TYPES:
        raise UnusableChatError("it has a message of a kind that is not known")
    parts = content.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise UnusableChatError("it has an image, a sound or a file in a message")
    text = "\n".join(parts).strip()
    if text and metadata.get("is_visually_hidden_from_conversation") is True:
        note("a message that the chat did not show", 1)
    elif text:
        yield {"role": role, "content": text}


def read_claude(value: Value, note: Callable[[str, int], None]) -> Value:
    """Return a conversation of Claude's export as an object with `messages`; `note` counts what is left out of it.

    Raises:
        UnusableChatError: it has an attachment or a tool, or a message of an unknown sender.
    """
    messages: Messages = []
    for item in value["chat_messages"]:
        message = _object(item)
        role = _SENDERS.get(str(message.get("sender")))
        if role is None:
            raise UnusableChatError("it has a message of a kind that is not known")
        if message.get("attachments") or message.get("files"):
            raise UnusableChatError("it has an image, a sound or a file in a message")
        text = _claude_text(message, note).strip()
        if text:
            messages.append({"role": role, "content": text})
    return _conversation(messages, value.get("uuid"))


def _claude_text(message: Value, note: Callable[[str, int], None]) -> str:
    parts = message.get("content")
    if not isinstance(parts, list) or not parts:
        text = message.get("text")
        return text if isinstance(text, str) else ""
    texts = []
    for part in map(_object, parts):
        if part.get("type") == "thinking":
            note("a thought, which the export may hold only in part", 1)
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise UnusableChatError(
                "it uses a tool of the chat (code, search, images), whose calls the export does not hold"
            )
    return "\n".join(texts)


def _conversation(messages: Messages, identity: object) -> Value:
    if not any(message["role"] == "assistant" for message in messages):
        raise UnusableChatError("it has no answer")
    # A question that was never answered teaches nothing.
    while messages[-1]["role"] != "assistant":
        messages.pop()
    return {"messages": messages, **({"conversation_id": identity} if isinstance(identity, str) and identity else {})}


def _object(value: object) -> Value:
    return value if isinstance(value, dict) else {}
