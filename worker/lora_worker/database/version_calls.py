"""The calls about versions of models, and the stable names of some of them."""

from __future__ import annotations

from uuid import UUID

from lora_worker.database import functions
from lora_worker.database.caller import Caller
from lora_worker.database.version_rows import (
    AliasChange,
    AliasMove,
    AliasMoved,
    AliasRow,
    EndpointRelease,
    ReleaseNote,
    VersionFilter,
    VersionRow,
)


class VersionCalls(Caller):
    """The methods of `DatabaseCalls` about versions and aliases. They raise only `ServiceError`s."""

    async def training_versions(self, wanted: VersionFilter) -> list[VersionRow]:
        """List versions of models, newest first."""
        return await self._call(functions.TRAINING_VERSIONS, filter=wanted)

    async def list_training_aliases(self, name: str | None = None, user_id: UUID | None = None) -> list[AliasRow]:
        """List the alias of this name, those of a user, or all of them, 200 at most."""
        return await self._call(functions.LIST_TRAINING_ALIASES, name=name, user_id=user_id)

    async def training_alias_history(self, name: str) -> list[AliasMove]:
        """Return the moves of an alias, newest first; none if there is no such alias."""
        return await self._call(functions.TRAINING_ALIAS_HISTORY, name=name)

    async def move_training_alias(self, change: AliasChange) -> AliasMoved:
        """Move an alias, or make it; nothing happens where somebody else has moved it since the caller looked."""
        # Not retried: after a lost answer the same call would be told that the alias leads there already.
        return await self._call(functions.MOVE_TRAINING_ALIAS, attempts=1, change=change)

    async def claim_endpoint_release(self, lease_seconds: int, again_seconds: int) -> EndpointRelease | None:
        """Claim the replacement of the machines that answer; None if none is due, or another worker does it."""
        return await self._call(
            functions.CLAIM_ENDPOINT_RELEASE,
            worker=self.worker,
            lease_seconds=lease_seconds,
            again_seconds=again_seconds,
        )

    async def note_endpoint_release(self, note: ReleaseNote) -> bool:
        """Write down how far that replacement is; False if the claim has run out."""
        return await self._call(functions.NOTE_ENDPOINT_RELEASE, worker=self.worker, note=note)
