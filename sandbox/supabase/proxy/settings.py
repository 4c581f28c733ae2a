"""The proxy's settings, which its process gets in one environment variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Self

SETTINGS_VARIABLE = "LORA_SANDBOX_PROXY"


@dataclass(frozen=True)
class ProxySettings:
    """The proxy's port, the URL of the upstream server, and the keys of the project."""

    port: int
    upstream: str
    jwt_secret: str
    publishable_key: str
    secret_key: str
    database_url: str = field(default="", repr=False)
    """Where users' metadata are written, which the upstream server can't do."""
    upload_url_seconds: int = 7200
    """How long upload URLs are valid: two hours in a hosted project, 60 seconds in a self-hosted one."""
    file_size_limit: int = 5 * 1024**3
    """The project's own limit for files in bytes, in addition to the limit of each bucket."""

    def to_environment(self) -> dict[str, str]:
        """Return the variable from which `python -m sandbox.supabase.proxy` reads these settings."""
        return {SETTINGS_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings that `to_environment` has written."""
        return cls(**json.loads(os.environ[SETTINGS_VARIABLE]))
