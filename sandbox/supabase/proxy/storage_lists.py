"""Rewrites lists of objects as the real Storage gives them: one folder deep, folders as rows, at most 1,500 rows."""

from __future__ import annotations

import json
from typing import Any

from sandbox.supabase.proxy.answer import Answer

_LIST = "/storage/v1/object/list/"
_LONGEST_PAGE = 1500
_USUAL_PAGE = 100
_EVERYTHING = 1_000_000
_COLUMNS = ("id", "updated_at", "created_at", "last_accessed_at", "metadata")


def asks_for_list(method: str, path: str) -> bool:
    """Tell whether the request asks for a list."""
    return method == "POST" and path.startswith(_LIST)


def list_request(body: bytes) -> bytes:
    """Rewrite the request to ask for everything under the prefix.

    The upstream server knows no folders, so `list_answer` finds them and cuts the page.
    """
    asked = json.loads(body)
    return json.dumps({"prefix": _folder(asked), "limit": _EVERYTHING, "offset": 0}).encode()


def list_answer(asked_body: bytes, answer: Answer) -> Answer:
    """Return the page that was requested by `asked_body`, made of everything under its prefix."""
    if answer.status != 200:
        return answer
    asked, rows = json.loads(asked_body), json.loads(answer.body)
    prefix, limit = _folder(asked), min(int(asked.get("limit") or _USUAL_PAGE), _LONGEST_PAGE)
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name, slash, _ = str(row["name"]).removeprefix(prefix).partition("/")
        kept = dict.fromkeys(_COLUMNS) if slash else {column: row.get(column) for column in _COLUMNS}
        found.setdefault(name, {"name": name, **kept})
    page = [found[name] for name in sorted(found)]
    offset = int(asked.get("offset") or 0)
    return answer._replace(body=json.dumps(page[offset : offset + limit]).encode())


def _folder(asked: dict[str, Any]) -> str:
    prefix = str(asked.get("prefix") or "")
    return f"{prefix}/" if prefix and not prefix.endswith("/") else prefix
