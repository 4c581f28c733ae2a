"""Names that Supabase Storage takes. It signs upload URLs for others, too, and then refuses the upload."""

from __future__ import annotations

import re

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
