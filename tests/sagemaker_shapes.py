"""Checks requests against botocore's own model of a service, of which boto3 itself checks only a part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from botocore.model import ServiceModel
from botocore.session import get_session


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


def model_of(service: str) -> ServiceModel:
    """botocore's model of a service."""
    return get_session().get_service_model(service)


def check_shape(shape: Any, value: Any, where: str) -> None:
    """Refuse what the model of the service does not allow. Raises: Refused."""
    if shape.type_name == "timestamp":
        return
    kind = _TYPES[shape.type_name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _refused(value, where, f"Member must be a {shape.type_name}")
    if shape.type_name == "structure":
        for name in shape.required_members:
            if name not in value:
                raise _refused(None, f"{where}.{name}", "Member must not be null")
    for name, part, member in _parts_of(shape, value, where):
        check_shape(part, member, name)
    if shape.type_name == "string":
        _check_text(shape.metadata, value, where)
    if kind is bool:
        return
    size = value if kind is int else len(value)
    limits = shape.metadata
    if not limits.get("min", size) <= size <= limits.get("max", size):
        raise _refused(value, where, f"Member must lie between {limits.get('min')} and {limits.get('max')}")


_TYPES: dict[str, type] = {
    "structure": dict, "map": dict, "list": list, "string": str, "boolean": bool, "integer": int, "long": int
}  # fmt: skip


def _parts_of(shape: Any, value: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if shape.type_name == "structure":
        for name, member in value.items():
            if name not in shape.members:
                raise _refused(member, f"{where}.{name}", "Member is unknown")
            yield f"{where}.{name}", shape.members[name], member
    elif shape.type_name == "map":
        for name, member in value.items():
            yield f"{where}.key", shape.key, name
            yield f"{where}.{name}", shape.value, member
    elif shape.type_name == "list":
        for member in value:
            yield f"{where}.member", shape.member, member


def _check_text(limits: dict[str, Any], text: str, where: str) -> None:
    pattern = limits.get("pattern")
    # Python's expressions have no classes of Unicode.
    if pattern and "\\p{" not in pattern and not re.fullmatch(pattern, text):
        raise _refused(text, where, f"Member must satisfy regular expression pattern: {pattern}")
    if "enum" in limits and text not in limits["enum"]:
        raise _refused(text, where, "Member must satisfy enum value set")


def _refused(value: Any, where: str, constraint: str) -> Refused:
    text = f"1 validation error detected: Value '{value}' at '{where}' failed to satisfy constraint: {constraint}"
    return Refused("ValidationException", text)
