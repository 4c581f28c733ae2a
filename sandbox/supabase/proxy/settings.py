"""The proxy's settings, handed to its process in one variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Self

SETTINGS_VARIABLE = "LORA_SANDBOX_PROXY"


@dataclass(frozen=True)
class ProxySettings:
    """Where the proxy listens, what it stands in front of, and the keys that it may swap."""

    port: int
    upstream: str
    jwt_secret: str
    publishable_key: str
    secret_key: str
    upload_url_seconds: int = 7200
    """How long upload URLs live: two hours on a hosted project, 60 seconds on a self-hosted one."""
    file_size_limit: int = 5 * 1024**3
    """The project's own limit in bytes, which acts beside each bucket's."""

    def to_environment(self) -> dict[str, str]:
        """The variable from which `python -m sandbox.supabase.proxy` reads these settings."""
        return {SETTINGS_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Self:
        """The settings of `to_environment`."""
        return cls(**json.loads(os.environ[SETTINGS_VARIABLE]))
