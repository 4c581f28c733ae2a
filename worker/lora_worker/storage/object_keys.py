"""How the names of objects are written: which path is which object, and how it stands in a URL."""

from __future__ import annotations

from urllib.parse import quote

# What Storage takes in a name and reads literally in a path. It signs the path as it was sent, with these characters
# never decoded, and compares that with the decoded one: encoded, they would make signed URLs that are refused.
_LITERAL = "/!*'()&$=@;:+,"


def object_key(path: str) -> str | None:
    """The name of the object that a path means; None where it can mean none.

    Slashes at the begin and end, and doubled ones, are dropped, as the official clients do when they upload.
    """
    parts = [part for part in path.split("/") if part]
    return "/".join(parts) if parts and not {".", ".."} & set(parts) else None


def url_path(path: str) -> str | None:
    """`object_key` as a part of a URL."""
    key = object_key(path)
    return None if key is None else quote(key, safe=_LITERAL)
