"""Names of objects in Supabase Storage: which path is which object, and which names it takes.

Storage signs upload URLs for other names, too, and then refuses the upload.
"""

from __future__ import annotations

import re
from urllib.parse import quote

# What Storage takes in a name and reads literally in a path. It signs the path as it was sent, with these characters
# never decoded, and compares that with the decoded one: encoded, they would make signed URLs that are refused.
_LITERAL = "/!*'()&$=@;:+,"
_STORABLE = re.compile(r"[A-Za-z0-9_/!.*'() &$=@;:+,-]+")
_REFUSED = re.compile(r"[^A-Za-z0-9_/!.*'() &$@;:+,-]")


def is_storable(path: str) -> bool:
    """Whether an object can be stored under this name, and be read again by a signed URL."""
    # Storage takes `?` too, but refuses the signed URL of such an object.
    return _STORABLE.fullmatch(path) is not None


def storable(path: str) -> str:
    """The path with every character that no name may have as `=` and its UTF-8 bytes in hex.

    No two paths become one: `=` itself is written so, too.
    """
    return _REFUSED.sub(lambda match: "".join(f"={byte:02X}" for byte in match[0].encode()), path)


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
