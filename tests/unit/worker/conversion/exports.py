"""Conversations in the form of chat exports."""

from __future__ import annotations

from typing import Any


def _node(name: str, parent: str | None, role: str, text: str, **more: Any) -> dict[str, Any]:
    content = {"content_type": "text", "parts": [text]}
    message = {"id": name, "author": {"role": role}, "content": content, "recipient": "all", "metadata": {}, **more}
    return {"id": name, "parent": parent, "children": [], "message": message}


def chatgpt() -> dict[str, Any]:
    """A conversation of ChatGPT's export whose first question was edited."""
    nodes = [
        {"id": "root", "parent": None, "children": ["h"], "message": None},
        _node("h", "root", "system", "Be brief.", metadata={"is_visually_hidden_from_conversation": True}),
        _node("s", "h", "system", ""),
        _node("old", "s", "user", "Hello"),
        _node("old answer", "old", "assistant", "Good day."),
        _node("a", "s", "user", "Hello, again"),
        _node("b", "a", "assistant", "Good evening."),
        _node("c", "b", "user", "Thanks"),
        _node("d", "c", "assistant", "Any time."),
        _node("e", "d", "user", "Never answered"),
    ]
    mapping = {node["id"]: node for node in nodes}
    return {"title": "A talk", "create_time": 1.5, "conversation_id": "tree", "current_node": "e", "mapping": mapping}


CLAUDE: dict[str, Any] = {
    "uuid": "u1",
    "name": "A talk",
    "chat_messages": [
        {"sender": "human", "text": "Hello", "content": [], "attachments": [], "files": []},
        {
            "sender": "assistant",
            "text": "Good evening.",
            "content": [{"type": "thinking", "thinking": "Greet."}, {"type": "text", "text": "Good evening."}],
        },
    ],
}
"""A conversation of Claude's export."""
