"""The facts of RunPod's REST API that this project relies on, and checks of requests and answers against them.

`tests/data/runpod_rest_v2.json` lists for each operation its method and path, the query parameters, the type of the
body and the type of the answer by status. A field with `?` may be missing. Types: `text` is a string that is not empty,
`some of X` a list that is not empty, `integer 1..9` has bounds, `X | Y` is either. No other fields are allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_FACTS = json.loads((Path(__file__).parent / "data" / "runpod_rest_v2.json").read_text())
_BOUNDED = re.compile(r"(integer|number)(?: ([\d.]+?)\.\.([\d.]+)?)?")


def operations() -> dict[str, tuple[str, str]]:
    """Return method and path of each operation, by its name; an id in the path is `x`."""
    return {name: (facts[0], re.sub(r"\{\w+\}", "x", facts[1])) for name, facts in _FACTS["operations"].items()}


def operation_of(method: str, path: str) -> str | None:
    """Return the name of the operation at a path such as `/v2/serverless/abc`; None if there is none."""
    for name, (its_method, pattern, *_) in _FACTS["operations"].items():
        if its_method == method and re.fullmatch("/v2/" + re.sub(r"\{\w+\}", "[^/]+", pattern), path):
            return str(name)
    return None


def faults_of_request(method: str, url: str, body: Any) -> list[str]:
    """Return what is wrong with a request, one sentence each; `body` is the decoded JSON, or None without a body."""
    parts = urlsplit(url)
    name = operation_of(method, parts.path)
    if name is None:
        return [f"there is no operation {method} {parts.path}"]
    _, _, parameters, type_of_body, _ = _FACTS["operations"][name]
    given = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
    found = [f"{name} has no parameter {parameter}" for parameter in given if parameter not in parameters]
    if (body is None) != (type_of_body is None):
        found.append(f"{name} {'needs' if type_of_body else 'takes no'} body")
    elif type_of_body is not None:
        found.extend(_misfits(type_of_body, body, name))
    return found


def faults_of_answer(method: str, path: str, status: int, content_type: str, body: Any) -> list[str]:
    """Return what is wrong with an answer, one sentence each; `body` as for a request."""
    name = operation_of(method, path)
    if name is None:
        return [f"there is no operation {method} {path}"]
    types = {**_FACTS["any operation"], **_FACTS["operations"][name][-1]}
    expected = types.get(str(status), types["default"] if status >= 400 else "nothing known")
    if expected is None:
        return [] if body is None else [f"{name} {status} has no body"]
    awaited_type = "application/problem+json" if expected == "Problem" else "application/json"
    found = [] if content_type == awaited_type else [f"{name} {status} is {content_type}"]
    return [*found, *_misfits(expected, body, f"{name} {status}")]


def _misfits(kind: str, value: Any, where: str) -> Iterator[str]:
    kind = _FACTS["names"].get(kind, kind)
    if kind in _FACTS["objects"]:
        yield from _misfits_of_object(_FACTS["objects"][kind], value, where)
    elif " | " in kind:
        if all([*_misfits(one, value, where)] for one in kind.split(" | ")):
            yield f"{where} is none of {kind}: {value!r}"
    elif match := re.fullmatch(r"(list|some|map) of (.+)", kind):
        yield from _misfits_of_collection(match[1], match[2], value, where)
    elif not _is_plain(kind, value):
        yield f"{where} is not {kind}: {value!r}"


def _misfits_of_object(fields: Mapping[str, str], value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where} is not an object: {value!r}"
        return
    types = {name.rstrip("?"): kind for name, kind in fields.items()}
    yield from (f"{where} lacks {name}" for name in fields if not name.endswith("?") and name not in value)
    for name, entry in value.items():
        if name in types:
            yield from _misfits(types[name], entry, f"{where}.{name}")
        else:
            yield f"{where} has no field {name}"


def _misfits_of_collection(shape: str, kind: str, value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict if shape == "map" else list) or (shape == "some" and not value):
        yield f"{where} is not {shape} of {kind}: {value!r}"
        return
    for index, entry in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _misfits(kind, entry, f"{where}[{index}]")


def _is_plain(kind: str, value: Any) -> bool:
    if match := _BOUNDED.fullmatch(kind):
        return _is_number(*match.groups(), value)
    if kind.startswith("one of "):
        return value in kind.removeprefix("one of ").split()
    return {
        "any": lambda: True,
        "null": lambda: value is None,
        "boolean": lambda: isinstance(value, bool),
        "string": lambda: isinstance(value, str),
        "text": lambda: isinstance(value, str) and value != "",
        "url": lambda: isinstance(value, str) and urlsplit(value).scheme in {"http", "https"},
        "digits.digits": lambda: isinstance(value, str) and re.fullmatch(r"\d+\.\d+", value) is not None,
        "time": lambda: isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None,
    }[kind]()


def _is_number(kind: str, least: str | None, most: str | None, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind == "integer" else int | float):
        return False
    return float(least or "-inf") <= value <= float(most or "inf")
