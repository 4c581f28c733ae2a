"""Seal and open upload grants.

The grant travels through a database row, and no signed URL may stand in a row in the clear. Worker
and trainer share the run's 256-bit token, of which the database knows only the sha256, so a key
derived from the token keeps the row opaque to everyone else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from urllib.parse import parse_qs, urlsplit


class GrantUnreadableError(ValueError):
    """The grant was not sealed with this run's token."""


def _key(token: str) -> bytes:
    return base64.urlsafe_b64encode(hashlib.sha256(b"lora-worker upload grant:" + token.encode()).digest())


def seal_urls(token: str, urls: dict[str, str]) -> str:
    """Encrypt `{path: signed upload URL}` for the holder of `token`."""
    from cryptography.fernet import Fernet

    return Fernet(_key(token)).encrypt(json.dumps(urls).encode()).decode()


def open_urls(token: str, sealed: str) -> dict[str, str]:
    """The `{path: signed upload URL}` of a grant.

    Raises:
        GrantUnreadableError: the grant is damaged or meant for another run.
    """
    from cryptography.fernet import Fernet, InvalidToken

    try:
        opened: dict[str, str] = json.loads(Fernet(_key(token)).decrypt(sealed.encode()))
    except InvalidToken as error:
        raise GrantUnreadableError("the upload grant does not belong to this run") from error
    return opened


def lifetime_seconds(signed_url: str) -> float | None:
    """How long a signed URL lives from its making; None where its token does not say.

    Told by the difference of two times of the signer's clock, so that no other clock matters.
    """
    try:
        (token,) = parse_qs(urlsplit(signed_url).query)["token"]
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return max(float(claims["exp"]) - float(claims["iat"]), 0.0)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
