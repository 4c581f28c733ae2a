"""Names of objects in Supabase Storage: which names it accepts, and how they are written in a URL.

Names must be checked before an upload URL is requested: Storage signs URLs for names that it does not accept, and
refuses only the upload itself.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, Field

# Characters that Storage accepts in a name and that must not be percent-encoded in a URL. Storage signs the path as it
# was sent, but compares it with the decoded path when the URL is used. So a signed URL with one of these characters
# encoded would be refused.
_LITERAL = "/!*'()&$=@;:+,"
_STORABLE = re.compile(r"[A-Za-z0-9_/!.*'() &$=@;:+,-]+")
_REFUSED = re.compile(r"[^A-Za-z0-9_/!.*'() &$@;:+,-]")


def is_storable(path: str) -> bool:
    """Tell whether an object can be stored under this name and be downloaded by a signed URL."""
    # Storage also stores names with `?`, but then refuses the signed URL of the object.
    return _STORABLE.fullmatch(path) is not None


def _check_path(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"{path!r} is not a plain relative path")
    if not is_storable(path):
        raise ValueError(f"{path!r} is a name that the storage refuses")
    return path


RelativePath = Annotated[str, AfterValidator(_check_path), Field(max_length=400)]
"""A plain relative path that can be an object's name."""


def storable(path: str) -> str:
    """Replace every character that Storage refuses in a name by its UTF-8 bytes as `=XX` (hexadecimal).

    `=` itself is replaced as well, so two different paths never give the same name.
    """
    return _REFUSED.sub(lambda match: "".join(f"={byte:02X}" for byte in match[0].encode()), path)


def object_key(path: str) -> str | None:
    """Return the name of the object that a path refers to; None for an empty path and one with `.` or `..`.

    Leading, trailing and doubled slashes are dropped, as the official clients do when they upload.
    """
    parts = [part for part in path.split("/") if part]
    return "/".join(parts) if parts and not {".", ".."} & set(parts) else None


def url_path(path: str) -> str | None:
    """Return `object_key(path)` percent-encoded for a URL; None where there is no such name."""
    key = object_key(path)
    return None if key is None else quote(key, safe=_LITERAL)
