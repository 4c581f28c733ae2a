"""The tokens with which trainers authenticate. Each is derived from a secret and the run's id.

So every worker that adopts a run can compute its token, and no database row has to store it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from uuid import UUID


def token_sha256(token: str) -> str:
    """Return the hash of a token that the database stores."""
    return hashlib.sha256(token.encode()).hexdigest()


class RunTokens:
    """Derives tokens from the present secret (the first), and from former ones for runs launched with them."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = [secret.encode() for secret in secrets]

    def of(self, run_id: UUID, launched_with: str | None) -> str | None:
        """Return the run's 256-bit token in hexadecimal.

        `launched_with` is the sha256 of the token that the run's trainer has; None for a run that was not launched yet.
        The result is None if that token was derived from a secret that this worker does not have.
        """
        tokens = [
            hmac.new(secret, b"lora-worker run token:" + run_id.bytes, hashlib.sha256).hexdigest()
            for secret in self._secrets
        ]
        if launched_with is None:
            return tokens[0]
        return next((token for token in tokens if token_sha256(token) == launched_with), None)
