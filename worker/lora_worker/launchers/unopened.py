"""Stands for a launcher that could not be opened, so that all else can be looked at."""

# ruff: noqa: ARG002 - the protocol gives the signatures

from __future__ import annotations

from typing import Any

from lora_worker.errors import ServiceRefusedError
from lora_worker.launchers.base import EndpointHealth, Guide, LaunchRef, LaunchState, Observation, Policy


class UnopenedLauncher:
    """Launches nothing and reaches nothing: every answer says why it could not be opened."""

    longest_launch_seconds = 0.0
    takes_errands = False
    endpoint = ""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self._reason = name, reason
        self.guide = Guide(name, "its console", reason, reason, reason)

    def reaches(self, endpoint: str) -> bool:
        """See `Launcher.reaches`."""
        return False

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """See `Launcher.launch`."""
        raise ServiceRefusedError(self.name, self._reason, status=400)

    async def observe(self, launch: LaunchRef) -> Observation:
        """See `Launcher.observe`."""
        return Observation(LaunchState.UNKNOWN, reason=self._reason)

    async def cancel(self, launch: LaunchRef) -> bool:
        """See `Launcher.cancel`."""
        return False

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """See `Launcher.health`."""
        return EndpointHealth(False, 0, 0, self._reason)
