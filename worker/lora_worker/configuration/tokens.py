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

    def wake_signature(self, run_id: UUID) -> str:
        """Return what a launcher sends along when it tells of the run: a 256-bit hexadecimal text for this alone."""
        return self._wake_signatures(run_id)[0]

    def is_wake(self, run_id: UUID, signature: str) -> bool:
        """Whether a signature is the run's, by the present secret or a former one. Compared in constant time."""
        given = signature.encode()
        return any(hmac.compare_digest(known.encode(), given) for known in self._wake_signatures(run_id))

    def _wake_signatures(self, run_id: UUID) -> list[str]:
        return [
            hmac.new(secret, b"lora-worker wake-up:" + run_id.bytes, hashlib.sha256).hexdigest()
            for secret in self._secrets
        ]

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
