"""Encrypts and decrypts upload grants: the signed URLs with which a trainer uploads its artifact.

The worker hands a grant to the trainer through a database row, and whoever can read the row must not be able to use
the signed URLs. Worker and trainer share the run's 256-bit token; the database stores only its sha256. So the URLs are
encrypted with a key that is derived from the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
from urllib.parse import parse_qs, urlsplit


class GrantUnreadableError(ValueError):
    """The grant is damaged, or was encrypted with another run's token."""


def _key(token: str) -> bytes:
    return base64.urlsafe_b64encode(hashlib.sha256(b"lora-worker upload grant:" + token.encode()).digest())


def seal_urls(token: str, urls: dict[str, str]) -> str:
    """Encrypt `{path: signed upload URL}` with a key derived from the run's `token`."""
    from cryptography.fernet import Fernet

    return Fernet(_key(token)).encrypt(json.dumps(urls).encode()).decode()


def open_urls(token: str, sealed: str) -> dict[str, str]:
    """Decrypt a grant to `{path: signed upload URL}`.

    Raises:
        GrantUnreadableError: the grant is damaged, or was encrypted with another run's token.
    """
    from cryptography.fernet import Fernet, InvalidToken

    try:
        opened: dict[str, str] = json.loads(Fernet(_key(token)).decrypt(sealed.encode()))
    except InvalidToken as error:
        raise GrantUnreadableError("the upload grant does not belong to this run") from error
    return opened


def lifetime_seconds(signed_url: str) -> float | None:
    """Return for how many seconds a signed URL was valid when it was signed; None if its token does not tell.

    This is the difference of the token's claims `exp` and `iat`. Both come from the signer's clock, so the result
    does not depend on the clock of this machine.
    """
    try:
        (token,) = parse_qs(urlsplit(signed_url).query)["token"]
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return max(float(claims["exp"]) - float(claims["iat"]), 0.0)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
